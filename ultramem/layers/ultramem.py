"""The UltraMem layer: Tucker retrieval, implicit value expansion, multi-core scoring (Huang et al., ICLR 2025).

A tensor's way: hidden (B, T, D) -> query (N, 1, 2, r, d) -> candidates -> slots (N, H, m) with values (N, H, h, m)
-> pooled (N, E, D_v) -> projected (B, T, D).
"""

from math import sqrt

from torch import Tensor, nn

from ultramem.layers.memory import MemoryLayer, MemoryRead
from ultramem.layers.query import Context, Query
from ultramem.layers.retrieval import TuckerRetrieval
from ultramem.layers.scores import simulated_values
from ultramem.layers.tables import Table, placement


def value_std(*, expansion: int, top_k: int, num_heads: int, num_layers: int) -> float:
    """UltraMem's initial values: ``N(0, E / (2 m H L))``, so that the layer's output variance is ``1 / (2 L)``."""
    return sqrt(expansion / (2 * top_k * num_heads * num_layers))


class UltraMemLayer(MemoryLayer):
    """A sparse memory layer that reads ``num_heads * top_k`` rows of a table for every token.

    Args:
        hidden_size: D.
        num_keys: n: the table has n * n rows; the layer has sqrt(E) * n keys a side.
        key_size: D_k, width of a key of one side over all ranks.
        value_size: D_v, width of a table row.
        top_k: m, slots a head; from as many candidates a side, but at most 128.
        num_heads: H key sets that share one query.
        tucker_rank: r; divides D_k.
        num_cores: h; divides D_v.
        expansion: E, a square.
        query_conv_size: taps of the causal convolution before the query; 0 for none.
        tucker_penalty: alpha of the auxiliary loss on the core's singular values.
        tucker_margin: tau.
        window: g: the layer reads the n * n rows of g layers in a table that layers share; see `placement`.
        first_row: where they begin.
        calibrated: initialise so that the mean top-m score is 1 and the output has the variance that `value_std`
            promises (section 3.5); else norm weights of 1, as in PKM.
        seed: of the slots' permutation.

    Raises:
        ValueError: E is not a square, a width does not divide, or m is more than the candidates.

    Example:
        >>> layer = UltraMemLayer(32, num_keys=16, key_size=16, value_size=16, top_k=4)
        >>> table = Table(16 * 16, 16, std=value_std(expansion=4, top_k=4, num_heads=2, num_layers=1))
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
        tucker_rank: int = 2,
        num_cores: int = 2,
        expansion: int = 4,
        query_conv_size: int = 4,
        tucker_penalty: float = 0.001,
        tucker_margin: float = 0.15,
        window: int = 1,
        first_row: int = 0,
        calibrated: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if key_size % tucker_rank:
            raise ValueError(f"key_size {key_size} does not divide into {tucker_rank} Tucker ranks")
        if value_size % num_cores:
            raise ValueError(f"value_size {value_size} does not divide into {num_cores} cores")
        self.placement = placement(num_keys, expansion=expansion, window=window, first_row=first_row, seed=seed)
        self.calibrated = calibrated
        rank_width = key_size // tucker_rank
        self.query = Query(
            hidden_size, num_sets=1, num_ranks=tucker_rank, rank_width=rank_width, conv_size=query_conv_size, norm=True
        )
        self.retrieval = TuckerRetrieval(
            num_heads=num_heads,
            num_keys=self.placement.num_keys,
            num_ranks=tucker_rank,
            rank_width=rank_width,
            num_cores=num_cores,
            top_k=top_k,
            penalty=tucker_penalty,
            margin=tucker_margin,
        )
        self.out_proj = nn.Linear(expansion * value_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws everything anew; see `calibrated`."""
        self.retrieval.reset_parameters()
        mean, root_mean_square = simulated_values(self.retrieval) if self.calibrated else (1.0, 1.0)
        # A slot's value has one factor of the query for its row and one for its column.
        self.query.reset_parameters(norm_weight=mean**-0.5)
        spread = root_mean_square / mean
        nn.init.normal_(self.out_proj.weight, std=self.out_proj.in_features**-0.5 / spread)

    def read(self, hidden_states: Tensor, table: Table, context: Context = None) -> MemoryRead:
        """hidden_states ``(B, T, D)``; context ``(B, at most query_conv_size - 1, D)`` that comes before them."""
        batch, length, _ = hidden_states.shape
        values, slots = self.retrieval(self.query(hidden_states, context), self.query.norm_weight)
        return MemoryRead(
            auxiliary_loss=self.retrieval.auxiliary_loss(),
            slots=slots.view(batch, length, *slots.shape[1:]),
            values=values.detach().view(batch, length, *values.shape[1:]),
            pooled=table.start(slots, values, self.placement),
        )
