"""A collective that never ends, or breaks off, as one line: which rank waited, for what, and which ranks were lost."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

_PACKAGE = Path(__file__).parents[1]
_TORCH = Path(dist.__file__).parent


class LostRankError(ValueError):
    """Other processes of the run did not come to a collective; the message says which."""


@contextmanager
def name_lost_ranks(patience_seconds: float = 5.0) -> Iterator[None]:
    """Turn the error of a collective inside the block into one that names rank, operation and lost ranks.

    Those that waited, too, say so to each other; who says nothing is lost: stuck, stopped or dead.

    Args:
        patience_seconds: how long to listen.

    Raises:
        LostRankError: a collective took longer than the process group's timeout, or its connection broke.

    Example:
        >>> with name_lost_ranks():
        ...     loss = model(torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss
    """
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() or not (isinstance(error, dist.DistError) or _is_gloos(error)):
            raise
        message = f"rank {dist.get_rank()}: {_operation(error)} failed ({_reason(error)}); {_lost(patience_seconds)}"
        raise LostRankError(f"{message}. The last checkpoint stays: start all ranks again") from error


def _is_gloos(error: RuntimeError) -> bool:
    """gloo's errors have no type: their text begins with the place in its source, or says what closed a connection."""
    return "/gloo/" in str(error) or "caused pair closure" in str(error)


def _reason(error: RuntimeError) -> str:
    """The error's first sentence, without the place in gloo's source."""
    return str(error).rpartition("] ")[2].split(". ")[0].strip()


def _operation(error: RuntimeError) -> str:
    """Name what was called of torch.distributed, and from where in this package."""
    frames = traceback.extract_tb(error.__traceback__)
    within = [frame.name for frame in frames if Path(frame.filename).is_relative_to(_TORCH)]
    operation = next((name for name in reversed(within) if name != "wrapper"), "a collective")
    if Path(frames[-1].filename).is_relative_to(_PACKAGE):  # awaited by our own hand: who awaits has its name
        operation = frames.pop().name
    callers = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    called = f", called by {callers[-1].name} in {Path(callers[-1].filename).name}" if len(callers) > 1 else ""
    return operation + called


def _lost(patience_seconds: float) -> str:
    store, world_size = dist.group.WORLD.get_group_store(), dist.get_world_size()  # type: ignore[union-attr]
    silent = set(range(world_size)) - {dist.get_rank()}
    try:
        store.set(f"waited/{dist.get_rank()}", "")
        give_up = time.monotonic() + patience_seconds
        while silent and time.monotonic() < give_up:
            silent = {rank for rank in silent if not store.check([f"waited/{rank}"])}
            time.sleep(0.1)
    except RuntimeError:
        return "the process with the ranks' store is lost"
    if not silent:
        return "all ranks waited"
    return f"no word from rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, sorted(silent)))}"
