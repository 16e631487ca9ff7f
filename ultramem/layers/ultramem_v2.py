"""The UltraMemV2 layer (arXiv 2508.18756): pre-values gate the slots, one projection serves all groups.

A tensor's way: hidden (B, T, D) -> query (N, 1, 2, r, D_k) -> slots (N, H, m) with values (N, H, h, m), times the
pre-values' product with a projection of hidden (N, D_p) -> pooled (N, D_v) -> projected (B, T, D).
"""

from torch import Tensor, nn

from ultramem.layers.memory import MemoryLayer, MemoryRead
from ultramem.layers.query import Context, Query
from ultramem.layers.retrieval import TuckerRetrieval
from ultramem.layers.scores import simulated_values
from ultramem.layers.tables import GatedTable, placement

_MATRIX_GAIN = 2 / 5  # a matrix's variance times D: equation 26 takes linears of standard deviation sqrt(2 / (5 D))


def value_std(
    *,
    hidden_size: int,
    pre_value_size: int,
    value_size: int,
    top_k: int,
    num_heads: int,
    score_variance: float,
    output_variance: float,
) -> float:
    """The initial standard deviation of both tables with which a layer's output has the variance that is asked for.

    UltraMemV2, equation 26, which asks for the variance of the feed-forward branch: with matrices of variance
    2 / (5 D), its activation left out, that is ``0.4**3 * k_in / (2 L)``, k_in the inner width over D. A trunk that
    preserves variance, as ours does, asks for ``1 / (2 L)``.

    Args:
        hidden_size: D.
        pre_value_size: D_p.
        value_size: D_v.
        top_k: m.
        num_heads: H.
        score_variance: sigma_s squared, of chosen scores whose mean is 1; `ultramem.layers.scores.score_variance`.
        output_variance: of the layer's output.

    Example:
        >>> sizes = dict(hidden_size=768, pre_value_size=192, value_size=192, top_k=32, num_heads=1)
        >>> round(value_std(**sizes, score_variance=0.1, output_variance=0.4**3 * 3.25 / (2 * 20)), 3)
        0.066
    """
    gated_sum = top_k * num_heads * (1 + score_variance) * pre_value_size * _MATRIX_GAIN
    projection = value_size / hidden_size * _MATRIX_GAIN
    return (output_variance / (gated_sum * projection)) ** 0.25


class UltraMemV2Layer(MemoryLayer):
    """A memory layer for every block, in parallel to its feed-forward branch.

    What differs from `UltraMemLayer`: every Tucker rank has its own query and keys of full width; a slot's values are
    multiplied with the product of its pre-value and a projection of the input; the E slots of a row share one output
    projection, so that they are further keys to it; no penalty by default.

    Args:
        hidden_size: D.
        num_keys: n: the table has n * n rows; the layer has sqrt(E) * n keys a side.
        key_size: D_k, width of a key of one side and of one rank.
        pre_value_size: D_p, width of a pre-value.
        value_size: D_v, width of a value.
        top_k: m, slots a head; from as many candidates a side, but at most 128.
        num_heads: H key sets that share one query.
        tucker_rank: r.
        num_cores: h; divides D_v.
        expansion: E, a square.
        query_conv_size: taps of the causal convolution before the query; 0 for none.
        tucker_penalty: alpha of the auxiliary loss on the core's singular values.
        tucker_margin: tau.
        balance_coef: beta, weight of `key_balance_loss`.
        window: g: the layer reads the n * n rows of g layers in a table that layers share; see `placement`.
        first_row: where they begin.
        seed: of the slots' permutation.

    Raises:
        ValueError: E is not a square, a width does not divide, or m is more than the candidates.

    Example:
        >>> import torch
        >>> layer = UltraMemV2Layer(32, num_keys=16, key_size=8, pre_value_size=8, value_size=16, top_k=4)
        >>> table = GatedTable(16 * 16, pre_width=8, width=16, pre_std=0.3, std=0.3)
        >>> layer(torch.randn(2, 5, 32), table).hidden_states.shape
        torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_keys: int,
        key_size: int,
        pre_value_size: int,
        value_size: int,
        top_k: int,
        num_heads: int = 1,
        tucker_rank: int = 2,
        num_cores: int = 2,
        expansion: int = 4,
        query_conv_size: int = 0,
        tucker_penalty: float = 0.0,
        tucker_margin: float = 0.15,
        balance_coef: float = 0.0,
        window: int = 1,
        first_row: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        if value_size % num_cores:
            raise ValueError(f"value_size {value_size} does not divide into {num_cores} cores")
        self.placement = placement(num_keys, expansion=expansion, window=window, first_row=first_row, seed=seed)
        self.balance_coef = balance_coef
        self.query = Query(
            hidden_size, num_sets=1, num_ranks=tucker_rank, rank_width=key_size, conv_size=query_conv_size, norm=True
        )
        self.retrieval = TuckerRetrieval(
            num_heads=num_heads,
            num_keys=self.placement.num_keys,
            num_ranks=tucker_rank,
            rank_width=key_size,
            num_cores=num_cores,
            top_k=top_k,
            penalty=tucker_penalty,
            margin=tucker_margin,
        )
        self.pre_proj = nn.Linear(hidden_size, pre_value_size, bias=False)
        self.out_proj = nn.Linear(value_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws everything anew, so that the chosen values average 1 (see `value_std` for the tables)."""
        self.retrieval.reset_parameters()
        mean, _ = simulated_values(self.retrieval)
        # A slot's value has one factor of the query for its row and one for its column.
        self.query.reset_parameters(norm_weight=mean**-0.5)
        for projection in (self.pre_proj, self.out_proj):
            nn.init.normal_(projection.weight, std=(_MATRIX_GAIN / self.pre_proj.in_features) ** 0.5)

    def read(self, hidden_states: Tensor, table: GatedTable, context: Context = None) -> MemoryRead:
        """hidden_states ``(B, T, D)``; context ``(B, at most query_conv_size - 1, D)`` that comes before them."""
        batch, length, _ = hidden_states.shape
        query = self.query(hidden_states, context)
        values, slots = self.retrieval(query, self.query.norm_weight)
        gates = table.pre_values.dot(slots, self.pre_proj(hidden_states).flatten(0, 1), self.placement)
        gated = values * gates[:, :, None]
        auxiliary_loss = self.retrieval.auxiliary_loss()
        if self.balance_coef:
            balance = self.retrieval.balance_loss(query, slots, self.query.norm_weight)
            auxiliary_loss = auxiliary_loss + self.balance_coef * balance.float()
        return MemoryRead(
            auxiliary_loss=auxiliary_loss,
            slots=slots.view(batch, length, *slots.shape[1:]),
            values=values.detach().view(batch, length, *values.shape[1:]),
            pooled=table.values.start(slots, gated, self.placement, by_group=False),
        )
