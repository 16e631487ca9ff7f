"""Learning rates as pure functions of the step.

A schedule is called with the number of the step about to be taken, counted from 0, and returns what the base learning
rate is multiplied by. There is no state, so a resumed run has the right learning rate from its first step.
``torch.optim.lr_scheduler.LambdaLR`` takes schedules as they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


def _warmup(step: int, warmup_steps: int) -> float:
    """Rise linearly; never zero, so that no step is spent on nothing, and 1 at the last warm-up step."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Warm up linearly, then stay at 1.

    Args:
        warmup_steps: steps until the multiplier is 1.

    Example:
        >>> [Constant(warmup_steps=2)(step) for step in range(3)]
        [0.5, 1.0, 1.0]
    """

    warmup_steps: int = 0

    def __call__(self, step: int) -> float:
        """Return the multiplier of step ``step``."""
        return _warmup(step, self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Warm up linearly, then fall along half a cosine; the last step has exactly ``floor``.

    Args:
        total_steps: steps of the run; ``floor`` is kept after them.
        warmup_steps: steps until the multiplier is 1.
        floor: the last multiplier (UltraMem, arXiv 2411.12364: 0.1).

    Example:
        >>> schedule = Cosine(total_steps=100, warmup_steps=10)
        >>> schedule(9), round(schedule(99), 6)
        (1.0, 0.1)
    """

    total_steps: int
    warmup_steps: int = 0
    floor: float = 0.1

    def __call__(self, step: int) -> float:
        """Return the multiplier of step ``step``."""
        if step < self.warmup_steps:
            return _warmup(step, self.warmup_steps)
        progress = min(1.0, (step + 1 - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Warm up linearly, stay at 1, then fall linearly over the last ``decay_steps``.

    The last step has exactly ``floor``. Until the decay begins nothing depends on ``total_steps``: a run can be made
    longer.

    Args:
        total_steps: steps of the run; ``floor`` is kept after them.
        decay_steps: how many of them, at the end, fall.
        warmup_steps: steps until the multiplier is 1.
        floor: the last multiplier.

    Example:
        >>> schedule = WarmupStableDecay(total_steps=100, decay_steps=20, floor=0.1)
        >>> schedule(79), round(schedule(99), 6)
        (1.0, 0.1)
    """

    total_steps: int
    decay_steps: int
    warmup_steps: int = 0
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the multiplier of step ``step``."""
        decayed = step + 1 - (self.total_steps - self.decay_steps)
        if decayed <= 0 or self.decay_steps == 0:
            return _warmup(step, self.warmup_steps)
        return 1 - (1 - self.floor) * min(1.0, decayed / self.decay_steps)


@dataclass(frozen=True, kw_only=True)
class TableMultiplier:
    """How much faster tables learn than the rest: from ``start`` at step 0, linearly, to ``end`` at the horizon.

    It multiplies the trunk's learning rate of the same step (UltraMem, arXiv 2411.12364, section 3.2: from 10 to 1; the
    horizon is not published).

    Args:
        horizon_steps: the step from which on the multiplier is ``end``.
        start: multiplier of step 0.
        end: multiplier from ``horizon_steps`` on.

    Example:
        >>> [TableMultiplier(horizon_steps=10)(step) for step in (0, 5, 10, 1000)]
        [10.0, 5.5, 1.0, 1.0]
    """

    horizon_steps: int
    start: float = 10.0
    end: float = 1.0

    def __call__(self, step: int) -> float:
        """Return the multiplier of step ``step``."""
        progress = min(1.0, step / self.horizon_steps) if self.horizon_steps else 1.0
        return self.start + (self.end - self.start) * progress
