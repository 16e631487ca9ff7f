"""PEER (arXiv 2407.04153, "Mixture of a million experts"): product-key retrieval of experts with a single neuron.

A tensor's way: hidden (B, T, D) -> queries (N, H, 2, 1, D_k) -> experts (N, H, m), softmax -> activation of the down
vectors' products with hidden (N, H, m), weighted -> pooled up vectors (B, T, D).
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ultramem.layers.memory import MemoryLayer, MemoryRead
from ultramem.layers.query import Context, Query
from ultramem.layers.retrieval import ProductKeyRetrieval
from ultramem.layers.tables import GatedTable, placement

# By name: the function, and the mean square of its values on a standard normal variable.
ACTIVATIONS: dict[str | None, tuple[Callable[[Tensor], Tensor], float]] = {
    "gelu": (F.gelu, 0.4252),
    "relu": (F.relu, 0.5),
    None: (lambda products: products, 1.0),
}


def expert_stds(
    hidden_size: int, *, top_k: int, num_heads: int, num_layers: int, activation: str | None
) -> tuple[float, float]:
    """Initial standard deviations of down and up vectors: products of unit variance, outputs of variance 1 / (2 L).

    The paper names none. Taken for even are the weights of a head's m experts.

    Example:
        >>> expert_stds(64, top_k=16, num_heads=8, num_layers=4, activation=None)
        (0.125, 0.5)
    """
    mean_square = ACTIVATIONS[activation][1]
    return hidden_size**-0.5, sqrt(top_k / (2 * num_layers * num_heads * mean_square))


class PEERLayer(MemoryLayer):
    """``sum over heads and chosen experts of weight * activation(<down, x>) * up``; a head's weights are a softmax.

    Args:
        hidden_size: D, width of the experts' down and up vectors.
        num_keys: n: there are n * n experts.
        key_size: D_k, width of a key of one side.
        top_k: m, experts a head.
        num_heads: H queries to one set of keys.
        qk_norm: normalise queries and keys.
        activation: "gelu", "relu" or None.
        query_conv_size: taps of the causal convolution before the query; 0 for none.
        window: g: the layer reads the n * n rows of g layers in a table that layers share; see `placement`.
        first_row: where they begin.

    Raises:
        ValueError: the activation is unknown, or m is more than the candidates.

    Example:
        >>> layer = PEERLayer(32, num_keys=16, key_size=8, top_k=4)
        >>> table = GatedTable(256, pre_width=32, width=32, pre_std=0.2, std=0.1)
        >>> layer(torch.randn(2, 5, 32), table).hidden_states.shape
        torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_keys: int,
        key_size: int,
        top_k: int,
        num_heads: int = 8,
        qk_norm: bool = False,
        activation: str | None = "gelu",
        query_conv_size: int = 0,
        window: int = 1,
        first_row: int = 0,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(str(name) for name in ACTIVATIONS)
            raise ValueError(f"activation is {activation!r}: choose from {known}")
        self.placement = placement(num_keys, window=window, first_row=first_row)
        self.activation = activation
        self.query = Query(
            hidden_size, num_sets=num_heads, num_ranks=1, rank_width=key_size, conv_size=query_conv_size, norm=qk_norm
        )
        self.retrieval = ProductKeyRetrieval(
            num_heads=1, num_keys=self.placement.num_keys, key_size=key_size, top_k=top_k, norm=qk_norm
        )
        self.out_proj = nn.Identity()  # the up vectors are as wide as the hidden states
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws everything anew."""
        self.query.reset_parameters()
        self.retrieval.reset_parameters()

    def read(self, hidden_states: Tensor, table: GatedTable, context: Context = None) -> MemoryRead:
        """hidden_states ``(B, T, D)``; context ``(B, at most query_conv_size - 1, D)`` that comes before them."""
        batch, length, _ = hidden_states.shape
        queries = self.query(hidden_states, context)
        # One set of keys serves all heads: to the retrieval they are further tokens.
        values, slots = self.retrieval(queries.flatten(0, 1)[:, None], self.query.norm_weight)
        scores, slots = (found.view(*queries.shape[:2], -1) for found in (values, slots))
        products = table.pre_values.dot(slots, hidden_states.flatten(0, 1), self.placement)
        activate, _ = ACTIVATIONS[self.activation]
        weights = scores.softmax(dim=-1) * activate(products)
        return MemoryRead(
            auxiliary_loss=values.new_zeros((), dtype=torch.float32),
            slots=slots.view(batch, length, *slots.shape[1:]),
            values=scores.detach().view(batch, length, *slots.shape[1:]).unsqueeze(-2),
            pooled=table.values.start(slots, weights[:, :, None], self.placement),
        )
