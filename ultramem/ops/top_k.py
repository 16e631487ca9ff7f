"""Exact top-k whose ties are decided by the lower index, the same on every device."""

from torch import Tensor


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension, sorted descending; equal scores keep the order of their indices.

    ``torch.topk`` leaves the order of equal scores open. It is right wherever no two neighbours of its first k + 1
    are equal, so only the rows that do hold a tie are sorted in full.

    Args:
        scores: ``(..., n)`` floating point.
        k: between 1 and n.

    Returns:
        Values ``(..., k)`` and indices ``(..., k)`` int64.

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 3.0]), 2)[1]
        tensor([1, 2])
    """
    num_scores = scores.shape[-1]
    values, indices = scores.topk(min(k + 1, num_scores), dim=-1)
    tied = (values[..., 1:] == values[..., :-1]).any(dim=-1)
    values, indices = values[..., :k].contiguous(), indices[..., :k].contiguous()
    if tied.any():
        sorted_values, sorted_indices = scores[tied].sort(dim=-1, descending=True, stable=True)
        values[tied], indices[tied] = sorted_values[..., :k], sorted_indices[..., :k]
    return values, indices
