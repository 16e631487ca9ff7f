"""The filter of a product-key memory in plain PyTorch: dense rank scores, then top-k.

Shapes: N tokens, Q query sets (1 shared, or H), H heads, 2 sides, n keys a side, r ranks, d width a rank, k chosen.
"""

from torch import Tensor

from ultramem.ops.precision import accumulation_dtype, without_autocast
from ultramem.ops.top_k import top_k


def rank_scores(query: Tensor, keys: Tensor) -> Tensor:
    """All scores of all keys: query ``(N, Q, 2, r, d)``, keys ``(H, 2, n, r, d)`` -> ``(H, 2, r, N, n)``."""
    dtype = accumulation_dtype(query.dtype)
    query_HSRNd = query.to(dtype).permute(1, 2, 3, 0, 4)
    keys_HSRdn = keys.to(dtype).permute(0, 1, 3, 4, 2)
    return query_HSRNd @ keys_HSRdn


def filter_scores(query: Tensor, keys: Tensor, filter_vectors: Tensor) -> Tensor:
    """The rank scores weighted and summed, ``(H, 2, N, n)``: one product of width r * d with a scaled query."""
    dtype = accumulation_dtype(query.dtype)
    scaled_NHSRd = query.to(dtype) * filter_vectors.to(dtype)[..., None]
    return scaled_NHSRd.flatten(-2).permute(1, 2, 0, 3) @ keys.to(dtype).flatten(-2).mT


@without_autocast
def select_keys(query: Tensor, keys: Tensor, filter_vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `ultramem.ops.select_keys`."""
    _, indices_HSNk = top_k(filter_scores(query, keys, filter_vectors), k)
    ranks = keys.shape[3]
    every_rank = indices_HSNk[:, :, None].expand(-1, -1, ranks, -1, -1)
    scores_HSRNk = rank_scores(query, keys).gather(-1, every_rank)
    return scores_HSRNk.permute(3, 0, 1, 2, 4).contiguous(), indices_HSNk.permute(2, 0, 1, 3).contiguous()


@without_autocast
def select_keys_backward(grad_scores: Tensor, indices: Tensor, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of query and keys from the scores of the chosen keys.

    The scores' gradient is spread over all n keys so that both products are dense: on a CPU faster than gathering.
    """
    num_tokens, num_query_sets = query.shape[:2]
    heads, sides, num_keys, ranks, _ = keys.shape
    dtype = accumulation_dtype(query.dtype)
    spread_HSRNn = grad_scores.new_zeros(heads, sides, ranks, num_tokens, num_keys, dtype=dtype)
    indices_HSRNk = indices.permute(1, 2, 0, 3)[:, :, None].expand(-1, -1, ranks, -1, -1)
    spread_HSRNn.scatter_(-1, indices_HSRNk, grad_scores.to(dtype).permute(1, 2, 3, 0, 4))

    grad_query_HSRNd = spread_HSRNn @ keys.to(dtype).permute(0, 1, 3, 2, 4)
    if num_query_sets == 1:
        grad_query_HSRNd = grad_query_HSRNd.sum(dim=0, keepdim=True)
    grad_keys_HSRnd = spread_HSRNn.transpose(-1, -2) @ query.to(dtype).permute(1, 2, 3, 0, 4)
    return (
        grad_query_HSRNd.permute(3, 0, 1, 2, 4).to(query.dtype).contiguous(),
        grad_keys_HSRnd.permute(0, 1, 3, 2, 4).to(keys.dtype).contiguous(),
    )
