"""From queries to slots: product keys (the sum of two scores) and Tucker-decomposed retrieval.

Shapes: N tokens, Q query sets, H heads, n keys a side, r ranks, d width a rank, m chosen slots, h cores.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ultramem import ops
from ultramem.layers.balance import key_balance_loss
from ultramem.layers.kept import Kept
from ultramem.layers.query import Keys

# The version of cores that were decomposed while split over processes: what a forward pass sees is a passing copy of
# them, so their changes are known by the optimizer's steps alone. (Loading brings the singular vectors along.)
_BY_SHARDS = (-1, -1)

# UltraMemV2 caps the candidates of a side, also where the final top-m is larger.
MAX_CANDIDATES = 128


class Retrieval(NamedTuple):
    """The chosen slots of every head, best first."""

    values: Tensor  # (N, H, h, m) float32, one value a core
    slots: Tensor  # (N, H, m) int64


def num_candidates(top_k: int, num_keys: int) -> int:
    """Candidates a side: top_k of them hold the best slots, and more than the cap only cost time."""
    candidates = min(top_k, num_keys, MAX_CANDIDATES)
    if not 1 <= top_k <= candidates**2:
        raise ValueError(f"top_k is {top_k}: {num_keys} keys a side offer {candidates**2} slots; lower top_k")
    return candidates


class ProductKeyRetrieval(nn.Module):
    """Slot (i, j) scores ``s_row[i] + s_col[j]``: product-key memory, Lample et al. 2019, section 3.2.

    Args:
        num_heads: H.
        num_keys: n a side.
        key_size: width of a key.
        top_k: m.
        norm: normalise the keys.
    """

    def __init__(self, *, num_heads: int, num_keys: int, key_size: int, top_k: int, norm: bool):
        super().__init__()
        self.num_keys, self.top_k = num_keys, top_k
        self.num_candidates = num_candidates(top_k, num_keys)
        self.keys = Keys(num_heads=num_heads, num_keys=num_keys, num_ranks=1, rank_width=key_size, norm=norm)

    def reset_parameters(self) -> None:
        """Draws the keys anew."""
        self.keys.reset_parameters()

    def forward(self, query: Tensor, query_weight: Tensor | None = None) -> Retrieval:
        """Query ``(N, Q, 2, 1, d)``, the weight ``(1, d)`` of its norm; the values have one core."""
        keys = self.keys(query.dtype, query_weight)
        heads = keys.shape[0]
        scores, indices = ops.select_keys(query, keys, keys.new_ones(heads, 2, 1), self.num_candidates)
        # A sum is a Tucker product of rank two: (s_row, 1) with (1, s_col) under the identity.
        row, column = scores.unbind(dim=2)
        one = torch.ones_like(row)
        scores = torch.stack([torch.cat([row, one], dim=2), torch.cat([one, column], dim=2)], dim=2)
        identity = torch.eye(2, dtype=scores.dtype, device=scores.device).expand(heads, 1, 2, 2).contiguous()
        return Retrieval(*ops.rescore(scores, indices, identity, self.num_keys, self.top_k))


class TuckerRetrieval(nn.Module):
    """Slot (i, j) scores ``S_row[:, i]^T C S_col[:, j]``, filtered by C's leading singular vectors: UltraMem, TDQKR.

    C is the sum of h cores; each core also gives its own value (multi-core scoring). The singular vectors are buffers,
    computed from the cores after every optimizer step, whoever steps it, and after every load, without gradient. Only
    writes through ``cores.data`` leave no trace: call `refresh` after them.

    Args:
        num_heads: H.
        num_keys: n a side.
        num_ranks: r.
        rank_width: d.
        num_cores: h.
        top_k: m.
        penalty: alpha of the auxiliary loss.
        margin: tau, up to which a singular value beyond the first is free.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        num_keys: int,
        num_ranks: int,
        rank_width: int,
        num_cores: int,
        top_k: int,
        penalty: float,
        margin: float,
    ):
        super().__init__()
        self.num_keys, self.top_k, self.penalty, self.margin = num_keys, top_k, penalty, margin
        self.num_candidates = num_candidates(top_k, num_keys)
        self.keys = Keys(num_heads=num_heads, num_keys=num_keys, num_ranks=num_ranks, rank_width=rank_width, norm=True)
        self.cores = nn.Parameter(torch.empty(num_heads, num_cores, num_ranks, num_ranks))
        self.left_vectors: Tensor
        self.right_vectors: Tensor
        self.register_buffer("left_vectors", torch.empty(num_heads, num_ranks, num_ranks))
        self.register_buffer("right_vectors", torch.empty(num_heads, num_ranks, num_ranks))
        self._decomposed: tuple[int, int] | None = None
        self._auxiliary_loss = Kept[Tensor]()
        self._filter_vectors = Kept[Tensor]()
        _refresh_after_optimizer_steps(self)

    def reset_parameters(self) -> None:
        """Keys anew, cores ``U(0, 1)``, singular vectors with positive sums."""
        self.keys.reset_parameters()
        nn.init.uniform_(self.cores)
        # The sign of a new pair is the one nearer to the last; ones make that "the one with positive sums".
        nn.init.ones_(self.left_vectors)
        nn.init.ones_(self.right_vectors)
        self.refresh()

    def __setstate__(self, state: dict) -> None:
        # A copy or an unpickled layer has not been through the constructor.
        super().__setstate__(state)
        _refresh_after_optimizer_steps(self)

    def refresh(self) -> None:
        """Recomputes the singular vectors of the summed cores, the leading pair's sign kept continuous."""
        _refresh([self])

    def _cores_version(self) -> tuple[int, int]:
        if isinstance(self.cores, DTensor):
            return _BY_SHARDS
        return self.cores.data_ptr(), 0 if self.cores.is_inference() else self.cores._version

    def singular_values(self) -> Tensor:
        """``(H, r)`` of the summed cores; the gradient is exact because the vectors are: d lambda = u^T dC t."""
        core = _whole(self.cores).sum(dim=1).float()
        left, right = self.left_vectors.float(), self.right_vectors.float()
        # Element by element: autocast would round the operands of a matrix product.
        return (left.mT.unsqueeze(-1) * core.unsqueeze(1) * right.mT.unsqueeze(-2)).sum(dim=(-2, -1))

    def auxiliary_loss(self) -> Tensor:
        """``alpha / (r - 1) * sum over i >= 2 of max(0, lambda_i - tau)**2``, summed over heads; float32 scalar."""
        return self._auxiliary_loss(self._penalise, self.cores, self.left_vectors, self.right_vectors)

    def _penalise(self) -> Tensor:
        excess = (self.singular_values()[:, 1:] - self.margin).clamp(min=0)
        return self.penalty / max(1, excess.shape[1]) * excess.square().sum()

    def balance_loss(self, query: Tensor, slots: Tensor, query_weight: Tensor | None = None) -> Tensor:
        """`key_balance_loss` of the slots ``(N, H, m)`` that a query ``(N, Q, 2, r, d)`` has chosen."""
        return key_balance_loss(query, self.keys(query.dtype, query_weight), self.filter_vectors(), slots)

    def filter_vectors(self) -> Tensor:
        """``(H, 2, r)``, at least float32: the leading singular vectors, by which candidates are chosen."""
        return self._filter_vectors(self._leading, self.left_vectors, self.right_vectors)

    def _leading(self) -> Tensor:
        leading = torch.stack([self.left_vectors[..., 0], self.right_vectors[..., 0]], dim=1)
        return leading.to(torch.promote_types(leading.dtype, torch.float32))

    def forward(self, query: Tensor, query_weight: Tensor | None = None) -> Retrieval:
        """Query ``(N, Q, 2, r, d)``, the weight ``(r, d)`` of its norm."""
        # The optimizer's hook does not see cores that were loaded or changed in place; a compiled graph relies on it.
        if not torch.compiler.is_compiling() and self._decomposed not in (_BY_SHARDS, self._cores_version()):
            self.refresh()
        keys = self.keys(query.dtype, query_weight)
        scores, indices = ops.select_keys(query, keys, self.filter_vectors(), self.num_candidates)
        return Retrieval(*ops.rescore(scores, indices, self.cores, self.num_keys, self.top_k))


_live: WeakSet[TuckerRetrieval] = WeakSet()


def _refresh_after_optimizer_steps(retrieval: TuckerRetrieval) -> None:
    _register_hook()
    _live.add(retrieval)


@cache
def _register_hook() -> None:
    register_optimizer_step_post_hook(_refresh_stepped)


def _refresh_stepped(optimizer: torch.optim.Optimizer, *_) -> None:
    # In the optimizer's order: processes that have parts of the cores must ask for them in the same one.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stepped = {id(parameter): number for number, parameter in enumerate(parameters)}
    retrievals = [retrieval for retrieval in _live if id(retrieval.cores) in stepped]
    _refresh(sorted(retrievals, key=lambda retrieval: stepped[id(retrieval.cores)]))


@torch.no_grad()
def _refresh(retrievals: Sequence[TuckerRetrieval]) -> None:
    # As many as are alike at a time: every decomposition waits for the GPU once.
    alike = defaultdict(list)
    for retrieval in retrievals:
        core = _whole(retrieval.cores).sum(dim=1).float()
        alike[core.shape[-1], core.device].append((retrieval, core))
    for pairs in alike.values():
        lefts, _, rights = torch.linalg.svd(torch.cat([core for _, core in pairs]))
        heads = [len(core) for _, core in pairs]
        for (retrieval, _), left, right in zip(pairs, lefts.split(heads), rights.mT.split(heads), strict=True):
            agreement = (left * retrieval.left_vectors + right * retrieval.right_vectors).sum(dim=-2, keepdim=True)
            sign = torch.where(agreement < 0, -1.0, 1.0)
            retrieval.left_vectors.copy_(left * sign)
            retrieval.right_vectors.copy_(right * sign)
            retrieval._decomposed = retrieval._cores_version()


def _whole(tensor: Tensor) -> Tensor:
    """A tensor of which other processes may have parts; then all of them ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
