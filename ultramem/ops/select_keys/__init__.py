"""Filter: from queries to the k best keys of each side, and their score in every Tucker rank.

UltraMem, section 3.2 (TDQKR): the candidates of a side are the top-k of ``u^T S``, one number a key.
"""

import torch
from torch import Tensor

from ultramem.ops.devices import on_its_device
from ultramem.ops.precision import accumulation_dtype
from ultramem.ops.reference_mode import reference_answers
from ultramem.ops.select_keys import reference


def select_keys(query: Tensor, keys: Tensor, filter_vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best keys of each head and side under the rank-1 filter, best first, ties to the lower index.

    Args:
        query: ``(N, Q, 2, r, d)``; Q is 1 (shared by the heads) or H.
        keys: ``(H, 2, n, r, d)``, same dtype.
        filter_vectors: ``(H, 2, r)``: u (side 0) and t (side 1), weights of the ranks in the filter. No gradient.
        k: keys to choose a side, at most n.

    Returns:
        scores ``(N, H, 2, r, k)`` in float32 (float64 for float64 inputs) and indices ``(N, H, 2, k)`` int64.
        Gradients flow from the scores to query and keys.

    Raises:
        ValueError: shapes do not belong together, or k is not in 1..n.

    Example:
        >>> query, keys = torch.randn(5, 1, 2, 2, 8), torch.randn(2, 2, 16, 2, 8)
        >>> scores, indices = select_keys(query, keys, torch.ones(2, 2, 2), 4)
        >>> scores.shape, indices.shape
        (torch.Size([5, 2, 2, 2, 4]), torch.Size([5, 2, 2, 4]))
    """
    heads, sides, num_keys, ranks, width = keys.shape
    if query.shape[1:] not in ((1, sides, ranks, width), (heads, sides, ranks, width)):
        raise ValueError(f"query {tuple(query.shape)} does not fit keys {tuple(keys.shape)}")
    if filter_vectors.shape != (heads, sides, ranks):
        raise ValueError(f"filter_vectors is {tuple(filter_vectors.shape)}, not {(heads, sides, ranks)}")
    if not 1 <= k <= num_keys:
        raise ValueError(f"k is {k}: choose between 1 and the {num_keys} keys of a side")
    return _select_keys(query, keys, filter_vectors, k)


@torch.library.custom_op("ultramem::select_keys", mutates_args=(), device_types="cpu")
def _select_keys(query: Tensor, keys: Tensor, filter_vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return reference.select_keys(query, keys, filter_vectors, k)


@_select_keys.register_kernel("cuda")
@on_its_device
def _(query, keys, filter_vectors, k):
    if reference_answers(query):
        return reference.select_keys(query, keys, filter_vectors, k)
    from ultramem.ops.select_keys import kernels  # Triton need not be there without a GPU.

    return kernels.select_keys(query, keys, filter_vectors, k)


@_select_keys.register_fake
def _(query, keys, filter_vectors, k):
    num_tokens, (heads, sides, _, ranks, _) = query.shape[0], keys.shape
    dtype = accumulation_dtype(query.dtype)
    return (
        query.new_empty(num_tokens, heads, sides, ranks, k, dtype=dtype),
        query.new_empty(num_tokens, heads, sides, k, dtype=torch.int64),
    )


@torch.library.custom_op("ultramem::select_keys_backward", mutates_args=(), device_types="cpu")
def _select_keys_backward(grad_scores: Tensor, indices: Tensor, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    return reference.select_keys_backward(grad_scores, indices, query, keys)


@_select_keys_backward.register_kernel("cuda")
@on_its_device
def _(grad_scores, indices, query, keys):
    if reference_answers(query):
        return reference.select_keys_backward(grad_scores, indices, query, keys)
    from ultramem.ops.select_keys import backward_kernels

    return backward_kernels.select_keys_backward(grad_scores, indices, query, keys)


@_select_keys_backward.register_fake
def _(grad_scores, indices, query, keys):
    return query.new_empty(query.shape), keys.new_empty(keys.shape)


def _setup_context(ctx, inputs, output):
    query, keys, _, _ = inputs
    ctx.save_for_backward(output[1], query, keys)


def _backward(ctx, grad_scores, _):
    return *_select_keys_backward(grad_scores, *ctx.saved_tensors), None, None


_select_keys.register_autograd(_backward, setup_context=_setup_context)
