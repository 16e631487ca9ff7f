"""Gather-dot: the product of each chosen row with its token's input, one number a slot.

The pre-values of UltraMemV2 (arXiv 2508.18756) and the down vectors of PEER's single-neuron experts (arXiv 2407.04153):
what then weights, or activates and weights, the row of another table at the same place. It is the transpose of
`ultramem.ops.lookup`, whose kernels its backward uses.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ultramem.ops.devices import on_its_device
from ultramem.ops.gather_dot import reference
from ultramem.ops.lookup.permutation import Placement, check_placement
from ultramem.ops.precision import accumulation_dtype
from ultramem.ops.reference_mode import reference_answers


def gather_dot(
    table: Tensor,
    slots: Tensor,
    inputs: Tensor,
    *,
    num_keys: int,
    expansion: int = 1,
    seed: int = 0,
    first_row: int = 0,
    sparse: bool = False,
) -> Tensor:
    """``out[t, k] = <table[row(slots[t, k])], inputs[t]>``.

    Args:
        table: ``(R, D_p)`` with R >= n * n / E; any number of elements, also beyond 2**31.
        slots: ``(N, K)`` int64 logical slots in ``[0, n * n)``.
        inputs: ``(N, D_p)``.
        num_keys: n, the logical keys of a side.
        expansion: E, the slots that share a row. Which row a slot has: `ultramem.ops.physical_rows`.
        seed: of the slots' permutation.
        first_row: where the n * n / E rows of these slots begin in a larger table; behind its last row they go on at 0.
        sparse: as in ``torch.nn.Embedding``: the table's gradient is a coalesced sparse tensor of the touched rows.

    Returns:
        ``(N, K)`` in float32 (float64 for a float64 table). Gradients flow to the table and to the inputs.

    Raises:
        ValueError: shapes do not belong together.

    Example:
        >>> gather_dot(torch.randn(9, 8), torch.randint(36, (5, 3)), torch.randn(5, 8), num_keys=6, expansion=4).shape
        torch.Size([5, 3])
    """
    placement = Placement(num_keys, expansion, seed, first_row)
    check_placement(table, placement)
    if inputs.shape != (slots.shape[0], table.shape[1]):
        raise ValueError(
            f"inputs {tuple(inputs.shape)} do not fit slots {tuple(slots.shape)} and a table of width {table.shape[1]}"
        )
    operation = _gather_dot_sparse if sparse else _gather_dot
    return operation(table, slots, inputs, placement)


def _setup_context(ctx, inputs, output):
    table, slots, vectors, ctx.placement = inputs
    ctx.save_for_backward(table, slots, vectors)


def _fake_products(table, slots, inputs, placement):
    return table.new_empty(slots.shape, dtype=accumulation_dtype(table.dtype))


@on_its_device
def _gather_dot_on_gpu(table, slots, inputs, placement):
    if reference_answers(table, inputs):
        return reference.gather_dot(table, slots, inputs, Placement(*placement))
    from ultramem.ops.gather_dot import kernels  # Triton need not be there without a GPU.

    return kernels.gather_dot(table, slots, inputs, Placement(*placement))


@torch.library.custom_op("ultramem::gather_dot", mutates_args=(), device_types="cpu")
def _gather_dot(table: Tensor, slots: Tensor, inputs: Tensor, placement: Sequence[int]) -> Tensor:
    return reference.gather_dot(table, slots, inputs, Placement(*placement))


@torch.library.custom_op("ultramem::gather_dot_backward", mutates_args=(), device_types="cpu")
def _gather_dot_backward(
    grad_products: Tensor, table: Tensor, slots: Tensor, inputs: Tensor, placement: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return reference.gather_dot_backward(grad_products, table, slots, inputs, Placement(*placement))


@_gather_dot_backward.register_kernel("cuda")
@on_its_device
def _(grad_products, table, slots, inputs, placement):
    if reference_answers(table, inputs):
        return reference.gather_dot_backward(grad_products, table, slots, inputs, Placement(*placement))
    from ultramem.ops.gather_dot import kernels

    return kernels.gather_dot_backward(grad_products, table, slots, inputs, Placement(*placement))


@_gather_dot_backward.register_fake
def _(grad_products, table, slots, inputs, placement):
    return table.new_empty(table.shape), inputs.new_empty(inputs.shape)


def _backward(ctx, grad_products):
    grad_table, grad_inputs = _gather_dot_backward(grad_products, *ctx.saved_tensors, ctx.placement)
    return grad_table, None, grad_inputs, None


_gather_dot.register_kernel("cuda", _gather_dot_on_gpu)
_gather_dot.register_fake(_fake_products)
_gather_dot.register_autograd(_backward, setup_context=_setup_context)


# The same operation whose table gradient arrives as touched rows: the choice is made once, not in the backward pass.
@torch.library.custom_op("ultramem::gather_dot_sparse", mutates_args=(), device_types="cpu")
def _gather_dot_sparse(table: Tensor, slots: Tensor, inputs: Tensor, placement: Sequence[int]) -> Tensor:
    return reference.gather_dot(table, slots, inputs, Placement(*placement))


@torch.library.custom_op("ultramem::gather_dot_backward_rows", mutates_args=(), device_types="cpu")
def _gather_dot_backward_rows(
    grad_products: Tensor, table: Tensor, slots: Tensor, inputs: Tensor, placement: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.gather_dot_backward_rows(grad_products, table, slots, inputs, Placement(*placement))


@_gather_dot_backward_rows.register_kernel("cuda")
@on_its_device
def _(grad_products, table, slots, inputs, placement):
    if reference_answers(table, inputs):
        return reference.gather_dot_backward_rows(grad_products, table, slots, inputs, Placement(*placement))
    from ultramem.ops.gather_dot import kernels

    return kernels.gather_dot_backward_rows(grad_products, table, slots, inputs, Placement(*placement))


@_gather_dot_backward_rows.register_fake
def _(grad_products, table, slots, inputs, placement):
    touched = torch.library.get_ctx().new_dynamic_size()
    return slots.new_empty(touched), table.new_empty(touched, table.shape[1]), inputs.new_empty(inputs.shape)


def _backward_rows(ctx, grad_products):
    table, *others = ctx.saved_tensors  # once: activation checkpointing unpacks a tensor a single time
    rows, grad_rows, grad_inputs = _gather_dot_backward_rows(grad_products, table, *others, ctx.placement)
    grad_table = torch.sparse_coo_tensor(rows[None], grad_rows, table.shape, is_coalesced=True, check_invariants=False)
    return grad_table, None, grad_inputs, None


_gather_dot_sparse.register_kernel("cuda", _gather_dot_on_gpu)
_gather_dot_sparse.register_fake(_fake_products)
_gather_dot_sparse.register_autograd(_backward_rows, setup_context=_setup_context)
