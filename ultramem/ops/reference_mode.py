"""When the reference answers although a kernel is registered for the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Of the process, not of the thread: autograd runs the backward of CUDA operations in threads of its own.
_forced = 0


@contextmanager
def use_reference() -> Iterator[None]:
    """Within it every operation runs its plain PyTorch reference, forward and backward, on every device.

    Example:
        >>> with use_reference():
        ...     reference_answers(torch.ones(2))
        True
    """
    global _forced
    _forced += 1
    try:
        yield
    finally:
        _forced -= 1


def reference_answers(*tensors: Tensor) -> bool:
    """Whether to leave the kernels: inside `use_reference`, and for float64, which they do not accumulate."""
    return _forced > 0 or any(tensor.dtype == torch.float64 for tensor in tensors)
