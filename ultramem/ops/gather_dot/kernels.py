"""Gather-dot in Triton: one program multiplies some rows of a token with its input. Its backward is all lookup's."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.lookup import backward_kernels as lookup_backward
from ultramem.ops.lookup import kernels as lookup_forward
from ultramem.ops.lookup.kernels import FEW_TOKENS, physical_rows, seed_argument
from ultramem.ops.lookup.permutation import Placement


@triton.jit
def _gather_dot_kernel(
    table,
    slots,
    inputs,
    products,
    seed,
    first_row,
    num_rows,
    NUM_SLOTS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    EXPANSION: tl.constexpr,
    WIDTH: tl.constexpr,
    READS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    BLOCKS: tl.constexpr = (NUM_SLOTS + READS - 1) // READS
    program = tl.program_id(0).to(tl.int64)
    token = program // BLOCKS
    reads = program % BLOCKS * READS + tl.arange(0, READS)
    real = reads < NUM_SLOTS
    slot = tl.load(slots + token * NUM_SLOTS + reads, mask=real, other=0)
    row, _ = physical_rows(slot, seed, first_row, num_rows, NUM_KEYS, EXPANSION)
    total = tl.zeros((READS, COLUMNS), tl.float32)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < WIDTH
        vector = tl.load(inputs + token * WIDTH + column, mask=inside, other=0).to(tl.float32)
        mask = real[:, None] & inside[None, :]
        values = tl.load(table + row[:, None] * WIDTH + column[None, :], mask=mask, other=0).to(tl.float32)
        total += values * vector[None, :]
    tl.store(products + token * NUM_SLOTS + reads, tl.sum(total, axis=1), mask=real)


def gather_dot(table: Tensor, slots: Tensor, inputs: Tensor, placement: Placement) -> Tensor:
    """See `ultramem.ops.gather_dot`."""
    num_tokens, num_slots = slots.shape
    num_rows, width = table.shape
    products = torch.empty(slots.shape, dtype=torch.float32, device=table.device)
    reads = 4 if num_tokens < FEW_TOKENS else 16
    if products.numel():
        _gather_dot_kernel[(num_tokens * triton.cdiv(num_slots, reads),)](
            table.contiguous(),
            slots.contiguous(),
            inputs.contiguous(),
            products,
            seed_argument(placement.seed),
            placement.first_row,
            num_rows,
            NUM_SLOTS=num_slots,
            NUM_KEYS=placement.num_keys,
            EXPANSION=placement.expansion,
            WIDTH=width,
            READS=reads,
            COLUMNS=min(128, triton.next_power_of_2(width)),
            num_warps=1,
        )
    return products


def gather_dot_backward(
    grad_products: Tensor, table: Tensor, slots: Tensor, inputs: Tensor, placement: Placement
) -> tuple[Tensor, Tensor]:
    """The dense gradient of the table ``(R, D_p)`` and that of the inputs ``(N, D_p)``."""
    weights = grad_products[:, None]
    grad_table = lookup_backward.table_gradient(inputs[:, None], table, slots, weights, placement, 1)
    return grad_table, _input_gradients(weights, table, slots, inputs, placement)


def gather_dot_backward_rows(
    grad_products: Tensor, table: Tensor, slots: Tensor, inputs: Tensor, placement: Placement
) -> tuple[Tensor, Tensor, Tensor]:
    """The touched rows ``(U,)`` ascending, their gradients ``(U, D_p)``, and the gradient of the inputs."""
    weights = grad_products[:, None]
    rows, grad_rows = lookup_backward.row_gradients(inputs[:, None], table, slots, weights, placement, 1)
    return rows, grad_rows, _input_gradients(weights, table, slots, inputs, placement)


def _input_gradients(weights: Tensor, table: Tensor, slots: Tensor, inputs: Tensor, placement: Placement) -> Tensor:
    return lookup_forward.lookup(table, slots, weights, placement, 1)[:, 0].to(inputs.dtype)
