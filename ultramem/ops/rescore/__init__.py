"""Rescore: from the candidates of both sides to the k best slots of their grid, and their value under every core.

UltraMem, section 3.2 (TDQKR, ``S_grid = S_row^T C S_col``) and 3.4 (multi-core scoring).
"""

import torch
from torch import Tensor

from ultramem.ops.devices import on_its_device
from ultramem.ops.reference_mode import reference_answers
from ultramem.ops.rescore import reference


def rescore(scores: Tensor, indices: Tensor, cores: Tensor, num_keys: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best slots of every head under the sum of the cores, best first, ties to the lower grid position.

    Args:
        scores: ``(N, H, 2, r, c)`` float32 or float64: the candidates' scores in every rank, from `select_keys`.
        indices: ``(N, H, 2, c)`` int64: their key numbers.
        cores: ``(H, h, r, r)``; slots are chosen by their sum, every one gives its own value.
        num_keys: n, the keys of a side: slot = row key * n + column key.
        k: slots to choose, at most c * c.

    Returns:
        values ``(N, H, h, k)`` in the dtype of ``scores`` and slots ``(N, H, k)`` int64. A core's values of all heads
        lie together, as `ultramem.ops.lookup` takes them.
        Gradients flow from the values to scores and cores.

    Raises:
        ValueError: shapes do not belong together, or k is not in 1..c*c.

    Example:
        >>> scores, indices = torch.randn(5, 2, 2, 3, 4), torch.randint(16, (5, 2, 2, 4))
        >>> values, slots = rescore(scores, indices, torch.rand(2, 1, 3, 3), num_keys=16, k=6)
        >>> values.shape, slots.shape
        (torch.Size([5, 2, 1, 6]), torch.Size([5, 2, 6]))
    """
    _, heads, _, ranks, num_candidates = scores.shape
    if cores.shape != (heads, cores.shape[1], ranks, ranks):
        raise ValueError(f"cores {tuple(cores.shape)} do not fit scores {tuple(scores.shape)}")
    if not 1 <= k <= num_candidates**2:
        raise ValueError(f"k is {k}: choose between 1 and the {num_candidates**2} slots of the candidates' grid")
    values, slots, _ = _rescore(scores, indices, cores, num_keys, k)
    return values, slots


@torch.library.custom_op("ultramem::rescore", mutates_args=(), device_types="cpu")
def _rescore(scores: Tensor, indices: Tensor, cores: Tensor, num_keys: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return reference.rescore(scores, indices, cores, num_keys, k)


@_rescore.register_kernel("cuda")
@on_its_device
def _(scores, indices, cores, num_keys, k):
    if reference_answers(scores):
        return reference.rescore(scores, indices, cores, num_keys, k)
    from ultramem.ops.rescore import kernels  # Triton need not be there without a GPU.

    return kernels.rescore(scores, indices, cores, num_keys, k)


@_rescore.register_fake
def _(scores, indices, cores, num_keys, k):
    num_tokens, (heads, num_cores) = scores.shape[0], cores.shape[:2]
    slots = indices.new_empty(num_tokens, heads, k)
    values = scores.new_empty(num_tokens, num_cores, heads, k).transpose(1, 2)
    return values, slots, torch.empty_like(slots)


@torch.library.custom_op("ultramem::rescore_backward", mutates_args=(), device_types="cpu")
def _rescore_backward(grad_values: Tensor, positions: Tensor, scores: Tensor, cores: Tensor) -> tuple[Tensor, Tensor]:
    return reference.rescore_backward(grad_values, positions, scores, cores)


@_rescore_backward.register_kernel("cuda")
@on_its_device
def _(grad_values, positions, scores, cores):
    if reference_answers(scores):
        return reference.rescore_backward(grad_values, positions, scores, cores)
    from ultramem.ops.rescore import kernels

    return kernels.rescore_backward(grad_values, positions, scores, cores)


@_rescore_backward.register_fake
def _(grad_values, positions, scores, cores):
    return scores.new_empty(scores.shape), cores.new_empty(cores.shape)


def _setup_context(ctx, inputs, output):
    scores, _, cores, _, _ = inputs
    ctx.save_for_backward(output[2], scores, cores)


def _backward(ctx, grad_values, _, __):
    grad_scores, grad_cores = _rescore_backward(grad_values, *ctx.saved_tensors)
    return grad_scores, None, grad_cores, None, None


_rescore.register_autograd(_backward, setup_context=_setup_context)
