"""The loss that spreads the choices of a memory layer over its keys."""

import torch
from torch import Tensor

from ultramem.ops.precision import accumulation_dtype, autocast_off


def key_balance_loss(query: Tensor, keys: Tensor, filter_vectors: Tensor, slots: Tensor) -> Tensor:
    """``n * sum_i f_i p_i`` over the n keys of a side, averaged over heads and sides; 1 where all keys fare alike.

    f_i is the share of the chosen slots that lie at key i, p_i the mean over tokens of the softmax of the filter
    scores: the load-balance loss of Switch Transformers on keys, as UltraMemV2 (arXiv 2508.18756) has tried it. It
    makes the scores of all keys, ``(H, 2, N, n)``.

    Args:
        query: ``(N, Q, 2, r, d)``, Q is 1 or H.
        keys: ``(H, 2, n, r, d)``.
        filter_vectors: ``(H, 2, r)``.
        slots: ``(N, H, m)`` int64, row key * n + column key.

    Returns:
        ``()`` float32, or float64 for float64 queries. Gradients flow to query and keys.

    Example:
        >>> query, keys = torch.zeros(5, 1, 2, 1, 8), torch.randn(1, 2, 4, 1, 8)
        >>> key_balance_loss(query, keys, torch.ones(1, 2, 1), torch.zeros(5, 1, 3, dtype=torch.int64))
        tensor(1.)
    """
    num_keys = keys.shape[2]
    with autocast_off(query.device):  # as of the filter itself
        dtype = accumulation_dtype(query.dtype)
        filters_NHSrd = query.to(dtype) * filter_vectors.to(dtype)[..., None]
        scores_HSNn = filters_NHSrd.flatten(-2).permute(1, 2, 0, 3) @ keys.to(dtype).flatten(-2).mT
        probabilities_HSn = scores_HSNn.softmax(dim=-1).mean(dim=2)
    chosen_SNHm = torch.stack([slots // num_keys, slots % num_keys])
    chosen_HSK = chosen_SNHm.permute(2, 0, 1, 3).flatten(2)
    counts_HSn = torch.zeros_like(probabilities_HSn).scatter_add_(
        -1, chosen_HSK, scores_HSNn.new_ones(chosen_HSK.shape)
    )
    shares_HSn = counts_HSn / max(1, chosen_HSK.shape[-1])
    return num_keys * (shares_HSn * probabilities_HSn).sum(dim=-1).mean()
