"""What the ranks of a run tell each other besides tensors; a process alone agrees with itself."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def is_first_rank() -> bool:
    """Whether this process writes what a run has once: rank 0, or a process alone."""
    return not dist.is_initialized() or dist.get_rank() == 0


def rank_and_count() -> tuple[int, int]:
    """This process's number and how many there are; ``(0, 1)`` alone.

    Example:
        >>> rank_and_count()
        (0, 1)
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_alone(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is nobody to talk to: no process group, or one of this process alone.

    Example:
        >>> is_alone()
        True
    """
    return not dist.is_initialized() or dist.get_world_size(group) == 1


def gather(value: Value, group: dist.ProcessGroup | None = None) -> list[Value]:
    """Return every rank's value, in the order of ranks, on every rank.

    Args:
        value: anything that can be pickled.
        group: of processes; none: all.

    Example:
        >>> gather("here")
        ['here']
    """
    if is_alone(group):
        return [value]
    values = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def any_rank(condition: bool) -> bool:
    """Whether the condition holds on any rank; all ranks get the same answer.

    Example:
        >>> any_rank(False)
        False
    """
    if is_alone():
        return condition
    count = torch.tensor(int(condition), dtype=torch.int32)
    dist.all_reduce(count)
    return bool(count)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors, which have one shape; the given one is not used any more.

    Example:
        >>> sum_over_ranks(torch.ones(2))
        tensor([1., 1.])
    """
    if not is_alone():
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def together(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """A block that all ranks get through or none: what one of them raises, every one of them raises.

    Where several fail, the error is that of the lowest rank. Inside the block a rank must not wait for another.

    Args:
        group: of processes; none: all.

    Example:
        >>> with together():
        ...     if is_first_rank():
        ...         print("written once")
        written once
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    errors = gather(_portable(error), group)
    first = next((other for other in errors if other is not None), None)
    if error is not None and str(error) == str(first):
        raise error
    if first is not None:
        raise first


def _portable(error: Exception | None) -> Exception | None:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a stranger's exception holds
        return RuntimeError(f"{type(error).__name__}: {error}")
