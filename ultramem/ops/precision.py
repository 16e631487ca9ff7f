"""In which precision scores are summed, whatever precision the model runs in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything narrower is summed in float32, because ties in bfloat16 choose wrong rows."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_off(device: torch.device) -> AbstractContextManager[None]:
    """A region that autocast leaves alone; on the meta device, where shapes alone are computed, there is none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def without_autocast(function: Callable) -> Callable:
    """An operation has its own precision: an autocast region around it must not lower that of its products."""

    @wraps(function)
    def wrapped(*args):
        with autocast_off(args[0].device):
            return function(*args)

    return wrapped
