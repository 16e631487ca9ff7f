"""What every memory layer returns."""

from typing import NamedTuple

from torch import Tensor


class MemoryOutput(NamedTuple):
    """A memory layer keeps nothing on itself: whoever called it gets all it knows.

    Shapes: B batch, T tokens, D hidden size, H heads, h cores, m slots a head.
    """

    hidden_states: Tensor  # (B, T, D)
    auxiliary_loss: Tensor  # () float32, its coefficient applied; zero where the layer has none
    slots: Tensor  # (B, T, H, m) int64 logical slots, best first
    values: Tensor  # (B, T, H, h, m) their values under every core, no gradient

    @property
    def scores(self) -> Tensor:
        """``(B, T, H, m)``: the scores by which the slots were chosen, descending: the sum over the cores."""
        return self.values.sum(dim=-2)
