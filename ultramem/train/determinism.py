"""The same numbers every time: random ones as a function of the step, and deterministic arithmetic."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Begin PyTorch's random numbers, on all devices, anew for a step, whatever was drawn before it.

    So dropout needs no state in a checkpoint, and nothing that happens between two steps changes it.

    Args:
        seed: of the run.
        step: the step about to be taken.
        rank: of the process: each drops other numbers.

    Example:
        >>> seed_step(0, 7)
    """
    # The CPU's generator looks at 32 bits only, so seed and step are mixed rather than put beside each other.
    (mixed,) = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed))


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Choose deterministic kernels where PyTorch has them (it warns where it has none); put the choice back after."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
