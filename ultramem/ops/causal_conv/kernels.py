"""Causal convolution in Triton: one program filters some tokens of a sequence for a block of channels.

The kernels count places from the first of the new inputs, so that the kept ones stand before 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 128
TOKENS = 32  # of a program, at most; more where filters reach further
TOKENS_A_GRADIENT_STEP = 8
STEPS_A_GRADIENT = 32  # steps whose sums for the weight stay in registers


@triton.jit
def _inputs(
    hidden_states,
    context,
    batch,
    place,
    column,
    length,
    width,
    batch_stride,
    place_stride,
    column_stride,
    KEPT: tl.constexpr,
):
    """Inputs ``(places, columns)`` in float32; zero before and behind all of them."""
    inside = (column < width)[None, :]
    new = ((place >= 0) & (place < length))[:, None]
    offsets = (batch * length + place)[:, None] * width + column[None, :]
    inputs = tl.load(hidden_states + offsets, mask=new & inside, other=0).to(tl.float32)
    if KEPT > 0:
        kept = ((place < 0) & (place >= -KEPT))[:, None]
        offsets = batch * batch_stride + (place + KEPT)[:, None] * place_stride + column[None, :] * column_stride
        inputs += tl.load(context + offsets, mask=kept & inside, other=0).to(tl.float32)
    return inputs


@triton.jit
def _conv_kernel(
    hidden_states,  # (B, T, D)
    weight,  # (D, K)
    context,  # (B, KEPT, D)
    convolved,  # (B, T, D)
    length,
    width,
    batch_stride,
    place_stride,
    column_stride,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
    ADVANCE: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column_blocks = tl.cdiv(width, COLUMNS)
    token_blocks = tl.cdiv(length, TOKENS)
    program = tl.program_id(0).to(tl.int64)
    column = program % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    token_block = program // column_blocks % token_blocks
    batch = program // (column_blocks * token_blocks)
    token = token_block * TOKENS + tl.arange(0, TOKENS)
    inside = column < width

    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for tap in tl.static_range(TAPS):
        filtered = tl.load(weight + column * TAPS + tap, mask=inside, other=0).to(tl.float32)
        total += filtered[None, :] * _inputs(
            hidden_states,
            context,
            batch,
            token + (tap - TAPS + 1),
            column,
            length,
            width,
            batch_stride,
            place_stride,
            column_stride,
            KEPT,
        )
    offsets = (batch * length + token)[:, None] * width + column[None, :]
    tl.store(convolved + offsets, total, mask=(token < length)[:, None] & inside[None, :])

    if ADVANCE:  # noqa: SIM102  (decided by the compiler, the other in the program)
        # The block that reads the context is the one that changes it, when it has read all.
        if token_block == 0:
            last = ()
            for number in tl.static_range(KEPT):
                last += (
                    _inputs(
                        hidden_states,
                        context,
                        batch,
                        length - KEPT + number + tl.arange(0, 1),
                        column,
                        length,
                        width,
                        batch_stride,
                        place_stride,
                        column_stride,
                        KEPT,
                    ),
                )
            tl.debug_barrier()
            columns = (batch * batch_stride + column * column_stride)[None, :]
            for number in tl.static_range(KEPT):
                tl.store(context + number * place_stride + columns, last[number], mask=inside[None, :])


def causal_conv(hidden_states: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    """See `ultramem.ops.causal_conv`."""
    return _convolve(hidden_states, weight, context, advance=False)


def causal_conv_step(hidden_states: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    """See `ultramem.ops.causal_conv_step`."""
    return _convolve(hidden_states, weight, context, advance=context.shape[1] > 0)


def _convolve(hidden_states: Tensor, weight: Tensor, context: Tensor, *, advance: bool) -> Tensor:
    hidden_states = hidden_states.contiguous()
    batch, length, width = hidden_states.shape
    convolved = torch.empty_like(hidden_states)
    if convolved.numel() == 0:
        return convolved
    reach = weight.shape[1] - 1
    # The first program of a sequence holds all outputs that read the context: no other reads what it changes.
    tokens = min(max(TOKENS, triton.next_power_of_2(reach)), triton.next_power_of_2(length))
    _conv_kernel[(batch * triton.cdiv(length, tokens) * triton.cdiv(width, COLUMNS),)](
        hidden_states,
        weight.contiguous(),
        context,
        convolved,
        length,
        width,
        *context.stride(),
        TAPS=weight.shape[1],
        KEPT=context.shape[1],
        ADVANCE=advance,
        TOKENS=tokens,
        COLUMNS=COLUMNS,
        num_warps=4 if tokens > 4 else 1,
    )
    return convolved


@triton.jit
def _backward_kernel(
    grad_convolved,  # (B, T, D)
    hidden_states,  # (B, T, D)
    weight,  # (D, K)
    context,  # (B, KEPT, D)
    grad_hidden_states,  # (B, T, D)
    grad_context,  # (B, KEPT, D)
    grad_weights,  # (programs a block of channels, D, K) float32
    length,
    width,
    batch_stride,
    place_stride,
    column_stride,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
    STEPS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All gradients of some inputs of a sequence, and what they add to that of the weight."""
    column_blocks = tl.cdiv(width, COLUMNS)
    chunks = tl.cdiv(length + KEPT, STEPS * TOKENS)
    program = tl.program_id(0).to(tl.int64)
    column = program % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    part = program // column_blocks
    batch = part // chunks
    first = part % chunks * (STEPS * TOKENS) - KEPT
    inside = column < width

    filters = ()
    sums = ()
    for tap in tl.static_range(TAPS):
        filters += (tl.load(weight + column * TAPS + tap, mask=inside, other=0).to(tl.float32),)
        sums += (tl.zeros((TOKENS, COLUMNS), tl.float32),)
    for step in range(0, tl.minimum(STEPS, tl.cdiv(length - first, TOKENS))):
        place = first + step * TOKENS + tl.arange(0, TOKENS)
        inputs = _inputs(
            hidden_states,
            context,
            batch,
            place,
            column,
            length,
            width,
            batch_stride,
            place_stride,
            column_stride,
            KEPT,
        )
        total = tl.zeros((TOKENS, COLUMNS), tl.float32)
        updated = ()
        for tap in tl.static_range(TAPS):
            token = place + (TAPS - 1 - tap)  # the output that reads the input by this tap
            mask = ((token >= 0) & (token < length))[:, None] & inside[None, :]
            offsets = (batch * length + token)[:, None] * width + column[None, :]
            gradient = tl.load(grad_convolved + offsets, mask=mask, other=0).to(tl.float32)
            total += filters[tap][None, :] * gradient
            updated += (sums[tap] + inputs * gradient,)
        sums = updated
        new = ((place >= 0) & (place < length))[:, None] & inside[None, :]
        tl.store(grad_hidden_states + (batch * length + place)[:, None] * width + column[None, :], total, mask=new)
        if KEPT > 0:
            kept = (place < 0)[:, None] & inside[None, :]
            offsets = (batch * KEPT + place + KEPT)[:, None] * width + column[None, :]
            tl.store(grad_context + offsets, total, mask=kept)
    for tap in tl.static_range(TAPS):
        target = grad_weights + (part * width + column) * TAPS + tap
        tl.store(target, tl.sum(sums[tap], axis=0), mask=inside)


def causal_conv_backward(
    grad_convolved: Tensor, hidden_states: Tensor, weight: Tensor, context: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the hidden states, the weight and the context."""
    batch, length, width = hidden_states.shape
    taps, kept = weight.shape[1], context.shape[1]
    grad_hidden_states = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
    grad_context = torch.empty(context.shape, dtype=context.dtype, device=context.device)
    if hidden_states.numel() == 0:
        return grad_hidden_states, torch.zeros_like(weight), grad_context.zero_()
    parts = batch * triton.cdiv(length + kept, STEPS_A_GRADIENT * TOKENS_A_GRADIENT_STEP)
    grad_weights = torch.empty(parts, width, taps, dtype=torch.float32, device=weight.device)
    _backward_kernel[(parts * triton.cdiv(width, COLUMNS),)](
        grad_convolved.contiguous(),
        hidden_states.contiguous(),
        weight.contiguous(),
        context,
        grad_hidden_states,
        grad_context,
        grad_weights,
        length,
        width,
        *context.stride(),
        TAPS=taps,
        KEPT=kept,
        STEPS=STEPS_A_GRADIENT,
        TOKENS=TOKENS_A_GRADIENT_STEP,
        COLUMNS=COLUMNS,
        num_warps=4,
    )
    return grad_hidden_states, grad_weights.sum(dim=0).to(weight.dtype), grad_context
