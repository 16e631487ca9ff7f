"""Kernels run where their tensors are."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def on_its_device(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Make the GPU of an operation's first tensor the current one while it runs: Triton launches on the current GPU.

    A model may lie on another than that, or on several.
    """

    @wraps(operation)
    def guarded(first, *others, **settings):
        with torch.cuda.device_of(first):
            return operation(first, *others, **settings)

    return guarded
