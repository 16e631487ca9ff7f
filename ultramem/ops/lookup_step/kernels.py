"""The lookup's backward walk whose sums step the table where they are complete: no gradient of the table is written.

Rows that no token read are stepped afterwards with a gradient of zero, as dense AdamW does, or left alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.lookup.backward_kernels import sort_reads, sum_rows
from ultramem.ops.lookup.permutation import Placement
from ultramem.ops.mixing_kernels import as_int32
from ultramem.ops.row_adam.kernels import adamw, bias_corrections, log, round_stochastically

_ELEMENTS = 2048  # a program


@triton.jit
def _corrections_kernel(step, corrections, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr):
    correction1, correction2 = bias_corrections(step, LOG_BETA1, LOG_BETA2)
    tl.store(corrections, correction1)
    tl.store(corrections + 1, correction2)


@triton.jit
def _stepped(sink, element, gradient, value, first, second, BETA1: tl.constexpr):
    """Value and first moment of elements after a step; `second` is the new second moment."""
    _, table, _, _, step, corrections, learning_rate, epsilon, weight_decay, seed = sink
    denominator = tl.sqrt(second / tl.load(corrections + 1)) + epsilon
    rate = learning_rate / tl.load(corrections)
    value, first = adamw(value, first, gradient, denominator, rate, learning_rate * weight_decay, BETA1)
    if table.dtype.element_ty == tl.bfloat16:
        value = round_stochastically(value, element, tl.load(step), seed)
    return value, first


@triton.jit
def _into_table(sink, position, row, total, column, inside, WIDTH: tl.constexpr, SETTINGS: tl.constexpr):
    """A row's gradient steps the row."""
    touched, table, exp_avg, exp_avg_sq, _, _, _, _, _, _ = sink
    BETA1: tl.constexpr = SETTINGS[0]
    BETA2: tl.constexpr = SETTINGS[1]
    SHARED: tl.constexpr = SETTINGS[2]
    row = row.to(tl.int64)
    tl.store(touched + row, True)
    element = row * WIDTH + column
    value = tl.load(table + element, mask=inside).to(tl.float32)
    first = tl.load(exp_avg + element, mask=inside).to(tl.float32)
    if SHARED:
        # Columns beyond the row have no gradient.
        second = tl.load(exp_avg_sq + row)
        second += (tl.sum(total * total) / WIDTH - second) * (1 - BETA2)
        tl.store(exp_avg_sq + row, second)
    else:
        second = tl.load(exp_avg_sq + element, mask=inside)
        second += (total * total - second) * (1 - BETA2)
        tl.store(exp_avg_sq + element, second, mask=inside)
    value, first = _stepped(sink, element, total, value, first, second, BETA1)
    tl.store(table + element, value, mask=inside)
    tl.store(exp_avg + element, first, mask=inside)


@triton.jit
def _rest_kernel(
    sink, num_rows, WIDTH: tl.constexpr, SETTINGS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Steps the rows that no token read."""
    touched, table, exp_avg, exp_avg_sq, _, _, _, _, _, _ = sink
    BETA1: tl.constexpr = SETTINGS[0]
    BETA2: tl.constexpr = SETTINGS[1]
    SHARED: tl.constexpr = SETTINGS[2]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    untouched = (row < num_rows) & (tl.load(touched + row, mask=row < num_rows, other=1) == 0)
    mask = untouched[:, None] & (column < WIDTH)[None, :]
    element = row[:, None] * WIDTH + column[None, :]
    second_moment = exp_avg_sq + (row[:, None] if SHARED else element)
    second_mask = untouched[:, None] if SHARED else mask
    value = tl.load(table + element, mask=mask, other=0).to(tl.float32)
    first = tl.load(exp_avg + element, mask=mask, other=0).to(tl.float32)
    second = tl.load(second_moment, mask=second_mask, other=0) * BETA2
    value, first = _stepped(sink, element, 0.0, value, first, second, BETA1)
    tl.store(table + element, value, mask=mask)
    tl.store(exp_avg + element, first, mask=mask)
    tl.store(second_moment, second, mask=second_mask)


def lookup_step(
    grad_pooled: Tensor,
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    slots: Tensor,
    weights: Tensor,
    step: Tensor,
    placement: Placement,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    lazy: bool,
    seed: int,
) -> Tensor:
    """See `ultramem.ops.lookup_step`."""
    assert all(tensor.is_contiguous() for tensor in (table, exp_avg, exp_avg_sq))
    num_rows, width = table.shape
    touched = torch.zeros(num_rows, dtype=torch.bool, device=table.device)
    corrections = torch.empty(2, dtype=torch.float32, device=table.device)
    step = step.to(table.device)
    _corrections_kernel[(1,)](step, corrections, LOG_BETA1=log(beta1), LOG_BETA2=log(beta2))
    rounding = as_int32(seed * 0x27D4EB2F)
    sink = (
        touched, table, exp_avg, exp_avg_sq, step, corrections, learning_rate, epsilon, weight_decay, rounding
    )  # fmt: skip
    settings = (beta1, beta2, exp_avg_sq.shape[1] < width)
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    if slots.numel():
        reads = sort_reads(slots, weights, num_rows, placement, grad_pooled.shape[1])
        sum_rows(grad_pooled, table, weights, reads, sink, _into_table, settings, grad_weights)
    if not lazy:
        columns = triton.next_power_of_2(width)
        rows = max(1, _ELEMENTS // columns)
        _rest_kernel[(triton.cdiv(num_rows, rows),)](
            sink, num_rows, WIDTH=width, SETTINGS=settings, ROWS=rows, COLUMNS=columns, num_warps=max(4, columns // 512)
        )
    return grad_weights
