"""Causal convolution: every channel of a sequence filtered over the present and a few earlier tokens.

UltraMem, section 3.1, change 3: a causal depthwise convolution before the query projection. In decode it reads the few
inputs that it keeps of every sequence, and keeps the new one in their place.
"""

import torch
from torch import Tensor

from ultramem.ops.causal_conv import reference
from ultramem.ops.devices import on_its_device
from ultramem.ops.reference_mode import reference_answers


def causal_conv(hidden_states: Tensor, weight: Tensor, context: Tensor | None = None) -> Tensor:
    """``out[b, t, d] = sum over taps k of weight[d, k] * input[b, t - (K - 1) + k, d]``, zero before all inputs.

    Args:
        hidden_states: ``(B, T, D)``.
        weight: ``(D, K)``; the last tap is the present token's.
        context: ``(B, at most K - 1, D)``, the inputs before `hidden_states`, in their dtype; any strides.

    Returns:
        ``(B, T, D)`` in the dtype of `hidden_states`, summed in float32 (float64 for float64). Gradients flow to all.

    Raises:
        ValueError: shapes do not belong together.

    Example:
        >>> causal_conv(torch.ones(1, 3, 1), torch.tensor([[1.0, 10.0]]), context=torch.full((1, 1, 1), 5.0)).flatten()
        tensor([15., 11., 11.])
    """
    if context is None:
        context = hidden_states.new_empty(hidden_states.shape[0], 0, hidden_states.shape[2])
    _check(hidden_states, weight, context)
    return _causal_conv(hidden_states, weight, context)


def causal_conv_step(hidden_states: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    """`causal_conv`, after which the context holds the last of its own and the new inputs. Without gradients.

    Args:
        hidden_states: ``(B, T, D)``.
        weight: ``(D, K)``.
        context: ``(B, at most K - 1, D)``, changed in place; any strides.

    Returns:
        ``(B, T, D)``.

    Raises:
        ValueError: shapes do not belong together.

    Example:
        >>> context = torch.tensor([5.0, 6.0]).view(1, 2, 1)
        >>> _ = causal_conv_step(torch.full((1, 1, 1), 7.0), torch.ones(1, 3), context)
        >>> context.flatten()
        tensor([6., 7.])
    """
    _check(hidden_states, weight, context)
    return _causal_conv_step(hidden_states, weight, context)


def _check(hidden_states: Tensor, weight: Tensor, context: Tensor) -> None:
    batch, _, width = hidden_states.shape
    if weight.shape[0] != width:
        raise ValueError(f"weight {tuple(weight.shape)} does not fit hidden_states {tuple(hidden_states.shape)}")
    if context.shape != (batch, context.shape[1], width):
        raise ValueError(f"context {tuple(context.shape)} does not fit hidden_states {tuple(hidden_states.shape)}")
    if context.shape[1] >= weight.shape[1]:
        raise ValueError(f"context has {context.shape[1]} inputs: {weight.shape[1]} taps reach {weight.shape[1] - 1}")


@torch.library.custom_op("ultramem::causal_conv", mutates_args=(), device_types="cpu")
def _causal_conv(hidden_states: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    return reference.causal_conv(hidden_states, weight, context)


@_causal_conv.register_kernel("cuda")
@on_its_device
def _(hidden_states, weight, context):
    if reference_answers(hidden_states, weight):
        return reference.causal_conv(hidden_states, weight, context)
    from ultramem.ops.causal_conv import kernels  # Triton need not be there without a GPU.

    return kernels.causal_conv(hidden_states, weight, context)


@_causal_conv.register_fake
def _(hidden_states, weight, context):
    return hidden_states.new_empty(hidden_states.shape)


@torch.library.custom_op("ultramem::causal_conv_step", mutates_args=("context",), device_types="cpu")
def _causal_conv_step(hidden_states: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    return reference.causal_conv_step(hidden_states, weight, context)


@_causal_conv_step.register_kernel("cuda")
@on_its_device
def _(hidden_states, weight, context):
    if reference_answers(hidden_states, weight):
        return reference.causal_conv_step(hidden_states, weight, context)
    from ultramem.ops.causal_conv import kernels

    return kernels.causal_conv_step(hidden_states, weight, context)


@_causal_conv_step.register_fake
def _(hidden_states, weight, context):
    return hidden_states.new_empty(hidden_states.shape)


@torch.library.custom_op("ultramem::causal_conv_backward", mutates_args=(), device_types="cpu")
def _causal_conv_backward(
    grad_convolved: Tensor, hidden_states: Tensor, weight: Tensor, context: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.causal_conv_backward(grad_convolved, hidden_states, weight, context)


@_causal_conv_backward.register_kernel("cuda")
@on_its_device
def _(grad_convolved, hidden_states, weight, context):
    if reference_answers(hidden_states, weight):
        return reference.causal_conv_backward(grad_convolved, hidden_states, weight, context)
    from ultramem.ops.causal_conv import kernels

    return kernels.causal_conv_backward(grad_convolved, hidden_states, weight, context)


@_causal_conv_backward.register_fake
def _(grad_convolved, hidden_states, weight, context):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (hidden_states, weight, context))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_convolved):
    return _causal_conv_backward(grad_convolved, *ctx.saved_tensors)


_causal_conv.register_autograd(_backward, setup_context=_setup_context)
