"""Memory+ (arXiv 2412.09764, "Memory Layers at Scale"): product-key memory with an input-dependent gate.

A tensor's way: hidden (B, T, D) -> queries (N, H, 2, 1, D_k) -> slots (N, H, m), softmax -> pooled (N, D_v), times
silu of a projection of hidden -> projected (B, T, D).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ultramem.layers.memory import MemoryLayer, MemoryRead
from ultramem.layers.query import Context, Query
from ultramem.layers.retrieval import ProductKeyRetrieval
from ultramem.layers.tables import Table, placement


class MemoryPlusLayer(MemoryLayer):
    """A product-key memory layer, normalised queries and keys, whose pooled rows pass a gate.

    ``(y * silu(x W_1)) W_2`` with y the pooled rows. All such layers of a model read one table. Its values start as
    product keys' do: `ultramem.layers.pkm.value_std`.

    Args:
        hidden_size: D.
        num_keys: n: the table has n * n rows.
        key_size: D_k, width of a key of one side.
        value_size: D_v; D in the paper.
        top_k: m, slots a head; exact up to 128, the candidates a side beyond.
        num_heads: H, each with its query and keys.
        query_conv_size: taps of the causal convolution before the query; 0 for none.
        window: g: the layer reads the n * n rows of g layers in a table that layers share; see `placement`.
        first_row: where they begin.

    Raises:
        ValueError: m is more than the candidates.

    Example:
        >>> import torch
        >>> layer, table = MemoryPlusLayer(32, num_keys=16, key_size=8, value_size=32, top_k=4), Table(256, 32, std=0.2)
        >>> layer(torch.randn(2, 5, 32), table).hidden_states.shape
        torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_keys: int,
        key_size: int,
        value_size: int,
        top_k: int,
        num_heads: int = 2,
        query_conv_size: int = 0,
        window: int = 1,
        first_row: int = 0,
    ):
        super().__init__()
        self.placement = placement(num_keys, window=window, first_row=first_row)
        self.query = Query(
            hidden_size, num_sets=num_heads, num_ranks=1, rank_width=key_size, conv_size=query_conv_size, norm=True
        )
        self.retrieval = ProductKeyRetrieval(
            num_heads=num_heads, num_keys=self.placement.num_keys, key_size=key_size, top_k=top_k, norm=True
        )
        self.gate_proj = nn.Linear(hidden_size, value_size, bias=False)
        self.out_proj = nn.Linear(value_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws everything anew; projections of unit gain."""
        self.query.reset_parameters()
        self.retrieval.reset_parameters()
        for projection in (self.gate_proj, self.out_proj):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def read(self, hidden_states: Tensor, table: Table, context: Context = None) -> MemoryRead:
        """hidden_states ``(B, T, D)``; context ``(B, at most query_conv_size - 1, D)`` that comes before them."""
        batch, length, _ = hidden_states.shape
        values, slots = self.retrieval(self.query(hidden_states, context), self.query.norm_weight)
        return MemoryRead(
            gate=F.silu(self.gate_proj(hidden_states)),
            auxiliary_loss=values.new_zeros((), dtype=torch.float32),
            slots=slots.view(batch, length, *slots.shape[1:]),
            values=values.detach().view(batch, length, *values.shape[1:]),
            pooled=table.start(slots, values.softmax(dim=-1), self.placement),
        )
