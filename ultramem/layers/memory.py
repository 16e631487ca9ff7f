"""What all memory layers have in common: two phases, and what they return."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from ultramem import ops
from ultramem.layers.query import Context, Query


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


class Arriving(NamedTuple):
    """Pooled rows that are still on their way here, in pieces."""

    pieces: Tensor  # to be filled; named apart, so that who looks for a layer's tensors finds it
    finish: Callable[[Tensor], Tensor]  # awaits the pieces, and makes the pooled rows of them


def arrived(pooled: Tensor | Arriving) -> Tensor:
    """Pooled rows, awaited where they must be."""
    return pooled if isinstance(pooled, Tensor) else pooled.finish(pooled.pieces)


class MemoryRead(NamedTuple):
    """A memory layer between its phases."""

    auxiliary_loss: Tensor  # as in `MemoryOutput`
    slots: Tensor
    values: Tensor
    pooled: Tensor | Arriving  # (B * T, E or 1, D_v)
    gate: Tensor | None = None  # (B, T, D_v), factors of the pooled rows


class MemoryLayer(nn.Module):
    """A memory layer in two phases: reading rows, and projecting what was pooled of them.

    Whoever calls the phases one by one may compute between them, while rows that other processes hold are on their way.
    """

    placement: ops.Placement
    query: Query
    retrieval: Any  # by product keys or by a Tucker core
    out_proj: Any  # linear, or nothing

    @abstractmethod
    def read(self, hidden_states: Tensor, table: Any, context: Context = None) -> MemoryRead:
        """The first phase, of what `forward` is given.

        It pools last: where it is computed again in the backward pass, what was on its way is not sent again.
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws everything anew."""

    def output(self, read: MemoryRead) -> MemoryOutput:
        """The second phase."""
        pooled = arrived(read.pooled).view(*read.slots.shape[:2], -1)
        return MemoryOutput(
            hidden_states=self.out_proj(pooled if read.gate is None else pooled * read.gate),
            auxiliary_loss=read.auxiliary_loss,
            slots=read.slots,
            values=read.values,
        )

    def forward(self, hidden_states: Tensor, table: Any, context: Context = None) -> MemoryOutput:
        """Both phases.

        Args:
            hidden_states: ``(B, T, D)``.
            table: `ultramem.layers.Table` or `ultramem.layers.GatedTable`, as the layer's kind reads it.
            context: ``(B, at most query_conv_size - 1, D)`` that comes before them.
        """
        return self.output(self.read(hidden_states, table, context))
