"""A causal depthwise convolution as shifted products, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem.ops.precision import accumulation_dtype


def causal_conv(hidden_states: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    """See `ultramem.ops.causal_conv`."""
    length, reach = hidden_states.shape[1], weight.shape[1] - 1
    dtype = accumulation_dtype(hidden_states.dtype)
    missing = context.new_zeros(context.shape[0], reach - context.shape[1], context.shape[2])
    sequence = torch.cat([missing, context, hidden_states], dim=1).to(dtype)
    taps = weight.to(dtype).unbind(dim=1)
    convolved = sequence[:, :length] * taps[0]
    for shift, tap in enumerate(taps[1:], start=1):
        convolved.addcmul_(sequence[:, shift : shift + length], tap)
    return convolved.to(hidden_states.dtype)


def causal_conv_step(hidden_states: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    """See `ultramem.ops.causal_conv_step`."""
    convolved = causal_conv(hidden_states, weight, context)
    context.copy_(torch.cat([context, hidden_states], dim=1)[:, hidden_states.shape[1] :])
    return convolved


def causal_conv_backward(
    grad_convolved: Tensor, hidden_states: Tensor, weight: Tensor, context: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the hidden states, the weight and the context."""
    kept, taps = context.shape[1], weight.shape[1]
    dtype = accumulation_dtype(hidden_states.dtype)
    sequence = torch.cat([context, hidden_states], dim=1).to(dtype)
    # Of every input, the gradients of the outputs that it reaches, the nearest first.
    padded = F.pad(grad_convolved.to(dtype), (0, 0, kept, taps - 1))
    reached = [padded[:, shift : shift + sequence.shape[1]] for shift in range(taps)]
    nearest_first = weight.to(dtype).flip(1).unbind(dim=1)
    grad_sequence = reached[0] * nearest_first[0]
    for gradient, tap in zip(reached[1:], nearest_first[1:], strict=True):
        grad_sequence.addcmul_(gradient, tap)
    grad_weight = torch.stack([(sequence * gradient).sum(dim=(0, 1)) for gradient in reversed(reached)], dim=1)
    grad_context, grad_hidden_states = grad_sequence.to(hidden_states.dtype).split(
        [kept, hidden_states.shape[1]], dim=1
    )
    return grad_hidden_states.contiguous(), grad_weight.to(weight.dtype), grad_context.clone()
