"""Row Adam in Triton: gradient, parameter and both moments pass the chip once."""

import math

import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.mixing_kernels import as_int32, mix_bits

_ELEMENTS = 2048  # a program


@triton.jit
def round_stochastically(values, elements, step, seed):
    """As `reference.round_stochastically`; `seed` is already multiplied."""
    key = seed.to(tl.uint32) + step.to(tl.uint32) * 0x85EBCA6B + (elements >> 32).to(tl.uint32) * 0x165667B1
    noise = mix_bits(elements.to(tl.uint32) * 0x1E3779B1 + key) & 0xFFFF
    bits = values.to(tl.uint32, bitcast=True)
    rounded = ((bits + noise) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where((bits & 0x7F800000) == 0x7F800000, values, rounded)


@triton.jit
def bias_corrections(step, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr):
    """``1 - beta**step`` of both moments."""
    number = tl.load(step).to(tl.float64)
    return (1 - tl.exp(number * LOG_BETA1)).to(tl.float32), (1 - tl.exp(number * LOG_BETA2)).to(tl.float32)


@triton.jit
def adamw(value, first, gradient, denominator, rate, decay, BETA1: tl.constexpr):
    """Value and first moment after a step; `rate` is the learning rate over the first moment's bias correction."""
    first += (gradient - first) * (1 - BETA1)
    return value * (1 - decay) - first * (rate / denominator), first


@triton.jit
def _row_adam_kernel(
    parameter,
    exp_avg,
    exp_avg_sq,
    rows,
    row_gradients,
    gradient_factor,
    step,
    learning_rate,
    epsilon,
    weight_decay,
    seed,
    num_parts,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    SHARED: tl.constexpr,
    CHOSEN: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    PARTS_A_ROW: tl.constexpr = WIDTH // PART
    correction1, correction2 = bias_corrections(step, LOG_BETA1, LOG_BETA2)

    part = tl.program_id(0).to(tl.int64) * PARTS + tl.arange(0, PARTS)
    column = tl.arange(0, COLUMNS)
    live = part < num_parts
    mask = live[:, None] & (column < PART)[None, :]
    if CHOSEN:
        row = tl.load(rows + part // PARTS_A_ROW, mask=live, other=0)
        table_part = row * PARTS_A_ROW + part % PARTS_A_ROW
    else:
        table_part = part
    element = table_part[:, None] * PART + column[None, :]

    second_moment = exp_avg_sq + (table_part if SHARED else element)
    second_mask = live if SHARED else mask
    gradient = tl.load(row_gradients + part[:, None] * PART + column[None, :], mask=mask, other=0).to(tl.float32)
    if gradient_factor is not None:
        gradient *= tl.load(gradient_factor).to(tl.float32)
    value = tl.load(parameter + element, mask=mask, other=0).to(tl.float32)
    first = tl.load(exp_avg + element, mask=mask, other=0).to(tl.float32)
    second = tl.load(second_moment, mask=second_mask, other=0).to(tl.float32)

    square = tl.sum(gradient * gradient, axis=1) / PART if SHARED else gradient * gradient
    second += (square - second) * (1 - BETA2)
    denominator = tl.sqrt(second / correction2) + epsilon
    denominator = denominator[:, None] if SHARED else denominator
    rate = learning_rate / correction1
    value, first = adamw(value, first, gradient, denominator, rate, learning_rate * weight_decay, BETA1)
    if parameter.dtype.element_ty == tl.bfloat16:
        value = round_stochastically(value, element, tl.load(step), seed)

    tl.store(parameter + element, value, mask=mask)
    tl.store(exp_avg + element, first, mask=mask)
    tl.store(second_moment, second, mask=second_mask)


def row_adam(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor | None,
    row_gradients: Tensor,
    step: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    seed: int,
    gradient_factor: Tensor | None = None,
) -> None:
    """See `ultramem.ops.row_adam`."""
    assert all(tensor.is_contiguous() for tensor in (parameter, exp_avg, exp_avg_sq))
    width, parts_a_row = parameter.shape[1], exp_avg_sq.shape[1]
    shared = parts_a_row < width
    part = width // parts_a_row if shared else width
    columns = triton.next_power_of_2(part)
    parts = max(1, _ELEMENTS // columns)
    num_parts = row_gradients.numel() // part
    if num_parts == 0:
        return
    _row_adam_kernel[(triton.cdiv(num_parts, parts),)](
        parameter,
        exp_avg,
        exp_avg_sq,
        rows,
        row_gradients.contiguous(),
        None if gradient_factor is None else gradient_factor.to(parameter.device),
        step.to(parameter.device),
        learning_rate,
        epsilon,
        weight_decay,
        as_int32(seed * 0x27D4EB2F),
        num_parts,
        BETA1=beta1,
        BETA2=beta2,
        LOG_BETA1=log(beta1),
        LOG_BETA2=log(beta2),
        WIDTH=width,
        PART=part,
        SHARED=shared,
        CHOSEN=rows is not None,
        PARTS=parts,
        COLUMNS=columns,
        num_warps=min(16, max(4, columns // 512)),
    )


def log(beta: float) -> float:
    """Of a decay rate; minus infinity of zero, whose powers are zero."""
    return math.log(beta) if beta else -math.inf
