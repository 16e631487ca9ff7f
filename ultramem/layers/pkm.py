"""Product-key memory in its own form, and the steps of UltraMem's ladder that come before Tucker retrieval.

Lample et al. 2019; the settings are UltraMem's Table 2, from "PKM" down to "IVE".
"""

import torch
from torch import Tensor, nn

from ultramem.layers.memory import MemoryLayer, MemoryRead
from ultramem.layers.query import Context, Query
from ultramem.layers.retrieval import ProductKeyRetrieval
from ultramem.layers.tables import Table, placement


def value_std(value_size: int) -> float:
    """PKM's initial values: ``N(0, 1 / D_v)``."""
    return value_size**-0.5


class PKMLayer(MemoryLayer):
    """A product-key memory layer; the defaults are PKM as published.

    Args:
        hidden_size: D.
        num_keys: n: the table has n * n rows; with expansion the layer has sqrt(E) * n keys a side.
        key_size: D_k, width of a key of one side.
        value_size: D_v. Where it is not D, or E > 1, a linear projection follows the pooling.
        top_k: m, slots a head; exact up to 128, the candidates a side beyond.
        num_heads: H.
        softmax: over the m scores of a head; else the raw scores weight the values.
        shared_query: all heads read one query.
        qk_norm: normalise queries and keys.
        expansion: E, a square.
        query_conv_size: taps of the causal convolution before the query; 0 for none.
        window: g: the layer reads the n * n rows of g layers in a table that layers share; see `placement`.
        first_row: where they begin.
        seed: of the slots' permutation under expansion.

    Raises:
        ValueError: E is not a square, or m is more than the candidates.

    Example:
        >>> import torch
        >>> layer, table = PKMLayer(32, num_keys=16, key_size=8, value_size=32, top_k=4), Table(256, 32, std=0.1)
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
        softmax: bool = True,
        shared_query: bool = False,
        qk_norm: bool = False,
        expansion: int = 1,
        query_conv_size: int = 0,
        window: int = 1,
        first_row: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.placement = placement(num_keys, expansion=expansion, window=window, first_row=first_row, seed=seed)
        self.softmax = softmax
        self.query = Query(
            hidden_size,
            num_sets=1 if shared_query else num_heads,
            num_ranks=1,
            rank_width=key_size,
            conv_size=query_conv_size,
            norm=qk_norm,
        )
        self.retrieval = ProductKeyRetrieval(
            num_heads=num_heads, num_keys=self.placement.num_keys, key_size=key_size, top_k=top_k, norm=qk_norm
        )
        projected = value_size != hidden_size or expansion > 1
        self.out_proj = nn.Linear(expansion * value_size, hidden_size, bias=False) if projected else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws everything anew; projections of unit gain."""
        self.query.reset_parameters()
        self.retrieval.reset_parameters()
        if isinstance(self.out_proj, nn.Linear):
            nn.init.normal_(self.out_proj.weight, std=self.out_proj.in_features**-0.5)

    def read(self, hidden_states: Tensor, table: Table, context: Context = None) -> MemoryRead:
        """hidden_states ``(B, T, D)``; context ``(B, at most query_conv_size - 1, D)`` that comes before them."""
        batch, length, _ = hidden_states.shape
        values, slots = self.retrieval(self.query(hidden_states, context), self.query.norm_weight)
        weights = values.softmax(dim=-1) if self.softmax else values
        return MemoryRead(
            auxiliary_loss=values.new_zeros((), dtype=torch.float32),
            slots=slots.view(batch, length, *slots.shape[1:]),
            values=values.detach().view(batch, length, *values.shape[1:]),
            pooled=table.start(slots, weights, self.placement),
        )
