"""From hidden states to the queries of a memory layer: causal convolution, projection, norm.

UltraMem, section 3.1, changes 2 to 4: normalised query, causal depthwise convolution before the projection, one query
shared by the heads.
"""

from functools import partial
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultramem import ops
from ultramem.layers.kept import Kept
from ultramem.ops.precision import autocast_off

NORM_EPSILON = 1e-6


class ConvState(NamedTuple):
    """The context of the tokens that come next: a layer that reads it lets it hold the last inputs of both.

    Only where gradients are disabled: a tensor is a context that stays as it is.
    """

    inputs: Tensor  # (B, at most kernel_size - 1, D), changed in place


Context = Tensor | ConvState | None


class CausalConv(nn.Module):
    """Depthwise convolution over the sequence that sees the present and ``kernel_size - 1`` earlier tokens.

    Args:
        hidden_size: D, the channels.
        kernel_size: taps; the last one is the present token.
    """

    def __init__(self, hidden_size: int, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(hidden_size, 1, kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's own initialisation of a depthwise ``Conv1d``."""
        bound = self.kernel_size**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, hidden_states: Tensor, context: Context = None) -> Tensor:
        """hidden_states ``(B, T, D)``, context ``(B, at most kernel_size - 1, D)`` before them -> ``(B, T, D)``."""
        weight = self.weight[:, 0]
        if isinstance(context, ConvState):
            return ops.causal_conv_step(hidden_states, weight, context.inputs)
        return ops.causal_conv(hidden_states, weight, context)


class Query(nn.Module):
    """Queries for both sides and all ranks, ``(N, Q, 2, r, d)`` with N = B * T.

    Args:
        hidden_size: D.
        num_sets: Q: 1 where the heads share a query, else the number of heads.
        num_ranks: r.
        rank_width: d.
        conv_size: taps of the causal convolution; 0 for none.
        norm: RMSNorm over d. Its weight, one a rank and shared by the sides, is left to the keys: see `Keys.forward`.
    """

    def __init__(self, hidden_size: int, *, num_sets: int, num_ranks: int, rank_width: int, conv_size: int, norm: bool):
        super().__init__()
        self.shape = (num_sets, 2, num_ranks, rank_width)
        self.conv = CausalConv(hidden_size, conv_size) if conv_size else None
        self.proj = nn.Linear(hidden_size, num_sets * 2 * num_ranks * rank_width, bias=False)
        self.norm_weight = nn.Parameter(torch.ones(num_ranks, rank_width)) if norm else None

    def reset_parameters(self, norm_weight: float = 1.0) -> None:
        """Projection of unit gain; the norm's weight decides how large the scores are."""
        if self.conv is not None:
            self.conv.reset_parameters()
        nn.init.normal_(self.proj.weight, std=self.proj.in_features**-0.5)
        if self.norm_weight is not None:
            nn.init.constant_(self.norm_weight, norm_weight)

    def forward(self, hidden_states: Tensor, context: Context = None) -> Tensor:
        """hidden_states ``(B, T, D)`` and what precedes them -> ``(B * T, Q, 2, r, d)``."""
        if self.conv is not None:
            hidden_states = self.conv(hidden_states, context)
        query = self.proj(hidden_states).view(-1, *self.shape)
        if self.norm_weight is None:
            return query
        # Autocast would leave it in float32: twice the bytes, and products at a tenth of the speed, for the retrieval.
        with autocast_off(query.device):
            return F.rms_norm(query, query.shape[-1:], eps=NORM_EPSILON)


class Keys(nn.Module):
    """Keys of both sides, ``(H, 2, n, r, d)``.

    Args:
        num_heads: H, the key sets.
        num_keys: n a side.
        num_ranks: r.
        rank_width: d.
        norm: RMSNorm over d with a weight a rank, shared by heads and sides.
    """

    def __init__(self, *, num_heads: int, num_keys: int, num_ranks: int, rank_width: int, norm: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, 2, num_keys, num_ranks, rank_width))
        self.norm_weight = nn.Parameter(torch.empty(num_ranks, rank_width)) if norm else None
        self._normalised = Kept[Tensor]()

    def reset_parameters(self) -> None:
        """A query of unit variance meets a key with a score of unit variance."""
        rank_width = self.weight.shape[-1]
        if self.norm_weight is None:
            nn.init.normal_(self.weight, std=rank_width**-0.5)
        else:
            nn.init.normal_(self.weight)
            nn.init.constant_(self.norm_weight, rank_width**-0.5)

    def forward(self, dtype: torch.dtype | None = None, query_weight: Tensor | None = None) -> Tensor:
        """The keys as they are compared with queries, in the queries' dtype; in inference computed once.

        A score is a product of a query and a key, so the weight ``(r, d)`` of the queries' norm may as well multiply
        the keys, which are fewer than the tokens of a batch.
        """
        dtype = dtype or self.weight.dtype
        if self.norm_weight is None:
            assert query_weight is None, "queries are normalised where keys are"
            return self.weight.to(dtype)
        weights: list[Tensor] = [self.norm_weight] if query_weight is None else [self.norm_weight, query_weight]
        return self._normalised(partial(self._normalise, dtype, weights), self.weight, *weights, dtype=dtype)

    def _normalise(self, dtype: torch.dtype, weights: list[Tensor]) -> Tensor:
        keys = F.rms_norm(self.weight, self.weight.shape[-1:], eps=NORM_EPSILON) * prod(weights[1:], start=weights[0])
        return keys.to(dtype)
