"""Causal convolution in Triton: one program filters some tokens of a sequence for a block of channels.

The kernels count places from the first of the new inputs, so that the kept ones stand before 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 128
TOKENS = 32  # of a program, at most; more where filters reach further
# Backward, a program is one warp, so that a row of its columns is 16 bytes a thread, and walks the rows of some places.
PLACES_A_GRADIENT = 64  # of a program, whose sums for the weight stay in registers; a multiple of the rows of a step
ROWS_A_GRADIENT_STEP = 4
COLUMNS_A_GRADIENT = 256
GRADIENT_STAGES = 3  # steps that are computed or on their way from memory
PARTS_A_SUM = 256
COLUMNS_A_SUM = 16


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
def _row(sequences, batch, place, column, length, width):
    """A row of one of ``(B, T, D)``, as it lies in memory; zero before and behind all of them."""
    mask = (place >= 0) & (place < length) & (column < width)
    return tl.load(sequences + (batch * length + place) * width + column, mask=mask, other=0)


@triton.jit
def _backward_kernel(
    grad_convolved,  # (B, T, D)
    hidden_states,  # (B, T, D)
    weight,  # (D, K)
    context,  # (B, KEPT, D)
    grad_hidden_states,  # (B, T, D)
    grad_context,  # (B, KEPT, D)
    grad_weights,  # (programs a block of channels, K, D) float32
    length,
    width,
    batch_stride,
    place_stride,
    column_stride,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All gradients of some inputs of a sequence, and what they add to that of the weight.

    An input's gradient needs those of the outputs at its place and the next ones. Rows are tensors of their own, so
    that the gradients that the next step needs again stay in registers.
    """
    column_blocks = tl.cdiv(width, COLUMNS)
    chunks = tl.cdiv(length + KEPT, PLACES)
    program = tl.program_id(0).to(tl.int64)
    column = program % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    part = program // column_blocks
    batch = part // chunks
    start = part % chunks * PLACES - KEPT
    inside = column < width
    context += batch * batch_stride + column * column_stride

    filters = ()
    sums = ()
    for tap in tl.static_range(TAPS):
        filters += (tl.load(weight + column * TAPS + tap, mask=inside, other=0).to(tl.float32),)
        sums += (tl.zeros((COLUMNS,), tl.float32),)
    reached = ()  # gradients of outputs, from the first place of a step on
    for number in tl.static_range(TAPS - 1):
        reached += (_row(grad_convolved, batch, start + number, column, length, width),)
    for first in tl.range(start, tl.minimum(start + PLACES, length), ROWS, num_stages=STAGES):
        inputs = ()
        for row in tl.static_range(ROWS):
            place = first + row
            values = _row(hidden_states, batch, place, column, length, width).to(tl.float32)
            if KEPT > 0:
                earlier = context + (place + KEPT) * place_stride
                values += tl.load(earlier, mask=(place < 0) & inside, other=0).to(tl.float32)
            inputs += (values,)
            reached += (_row(grad_convolved, batch, place + (TAPS - 1), column, length, width),)
        for row in tl.static_range(ROWS):
            place = first + row
            total = tl.zeros((COLUMNS,), tl.float32)
            updated = ()
            for tap in tl.static_range(TAPS):
                gradient = reached[row + TAPS - 1 - tap].to(tl.float32)  # of the output that reads it by this tap
                total += filters[tap] * gradient
                updated += (sums[tap] + inputs[row] * gradient,)
            sums = updated
            target = grad_hidden_states + (batch * length + place) * width + column
            tl.store(target, total, mask=(place >= 0) & (place < length) & inside)
            if KEPT > 0:
                target = grad_context + (batch * KEPT + place + KEPT) * width + column
                tl.store(target, total, mask=(place < 0) & inside)
        reached = reached[ROWS:]
    for tap in tl.static_range(TAPS):
        tl.store(grad_weights + (part * TAPS + tap) * width + column, sums[tap], mask=inside)


@triton.jit
def _sum_parts_kernel(
    grad_weights,  # (P, K, D) float32
    grad_weight,  # (D, K)
    num_parts,
    width,
    TAPS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The weight's gradient, summed in a fixed order."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)  # of all taps
    inside = column < TAPS * width
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for first in range(0, num_parts, PARTS):
        part = first + tl.arange(0, PARTS)
        offsets = part.to(tl.int64)[:, None] * (TAPS * width) + column[None, :]
        total += tl.load(grad_weights + offsets, mask=(part < num_parts)[:, None] & inside[None, :], other=0)
    tl.store(grad_weight + column % width * TAPS + column // width, tl.sum(total, axis=0), mask=inside)


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
    parts = batch * triton.cdiv(length + kept, PLACES_A_GRADIENT)
    grad_weights = torch.empty(parts, taps, width, dtype=torch.float32, device=weight.device)
    _backward_kernel[(parts * triton.cdiv(width, COLUMNS_A_GRADIENT),)](
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
        PLACES=PLACES_A_GRADIENT,
        ROWS=ROWS_A_GRADIENT_STEP,
        COLUMNS=COLUMNS_A_GRADIENT,
        STAGES=GRADIENT_STAGES,
        num_warps=1,
    )
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    _sum_parts_kernel[(triton.cdiv(taps * width, COLUMNS_A_SUM),)](
        grad_weights, grad_weight, parts, width, TAPS=taps, PARTS=PARTS_A_SUM, COLUMNS=COLUMNS_A_SUM, num_warps=4
    )
    return grad_hidden_states, grad_weight, grad_context
