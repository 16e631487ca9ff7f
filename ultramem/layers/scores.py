"""What values Tucker retrieval gives at the start, by simulation: the constants of the layers' initialisation."""

from functools import cache

import torch
from torch import Tensor

from ultramem import ops
from ultramem.layers.retrieval import TuckerRetrieval, num_candidates

_TOKENS = 64
_DRAWS = 16


def simulated_values(retrieval: TuckerRetrieval) -> tuple[float, float]:
    """Mean and root mean square of the chosen values where all rank scores are standard normal."""
    if retrieval.cores.is_meta:
        return 1.0, 1.0
    cores, filters = (tensor.detach().float().cpu() for tensor in (retrieval.cores, retrieval.filter_vectors()))
    values = _chosen_values(cores, filters, retrieval.num_keys, retrieval.top_k)
    return values.mean().item(), values.square().mean().sqrt().item()


@cache
def score_variance(*, num_keys: int, top_k: int, num_heads: int, tucker_rank: int, num_cores: int) -> float:
    """The variance of the chosen values where their mean is 1, over random cores (UltraMemV2's sigma_s squared).

    Args:
        num_keys: n, the logical keys of a side.
        top_k: m.
        num_heads: H.
        tucker_rank: r.
        num_cores: h.

    Example:
        >>> round(score_variance(num_keys=360, top_k=32, num_heads=1, tucker_rank=2, num_cores=2), 1)
        0.1
    """
    generator = torch.Generator().manual_seed(1)
    cores = torch.rand(
        _DRAWS * num_heads, num_cores, tucker_rank, tucker_rank, generator=generator, device="cpu", dtype=torch.float32
    )
    left, _, right = torch.linalg.svd(cores.sum(dim=1))
    # Positive matrices: the leading vectors can be taken positive.
    filters = torch.stack([left[..., 0].abs(), right[..., 0, :].abs()], dim=1)
    values = _chosen_values(cores, filters, num_keys, top_k).unflatten(1, (_DRAWS, num_heads))
    draws = values.transpose(0, 1).flatten(1)
    return (draws.square().mean(dim=1) / draws.mean(dim=1).square() - 1).mean().item()


def _chosen_values(cores: Tensor, filters: Tensor, num_keys: int, top_k: int) -> Tensor:
    """Values ``(N, H, h, m)`` of the slots that cores ``(H, h, r, r)`` choose with filters ``(H, 2, r)``."""
    heads, _, ranks, _ = cores.shape
    generator = torch.Generator().manual_seed(0)
    shape = (_TOKENS, heads, 2, ranks, num_keys)
    scores = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
    filtered = torch.einsum("hsr,nhsrk->nhsk", filters, scores)
    indices = filtered.topk(num_candidates(top_k, num_keys), dim=-1).indices
    scores = scores.gather(-1, indices[:, :, :, None].expand(-1, -1, -1, ranks, -1))
    values, _ = ops.rescore(scores, indices, cores, num_keys, top_k)
    return values
