"""Lookup: weighted pooling of table rows, by expansion group and by core.

UltraMem, section 3.3 (implicit value expansion: pool first, project after) and 3.4 (multi-core scoring: chunk i of a
row is weighted by core i). Product keys, Memory+ and PEER are the case E = 1, h = 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ultramem.ops.devices import on_its_device
from ultramem.ops.lookup import reference
from ultramem.ops.lookup.permutation import Placement, check_placement
from ultramem.ops.reference_mode import reference_answers


def lookup(
    table: Tensor,
    slots: Tensor,
    weights: Tensor,
    *,
    num_keys: int,
    expansion: int = 1,
    seed: int = 0,
    first_row: int = 0,
    by_group: bool = True,
    sparse: bool = False,
) -> Tensor:
    """``out[t, p, chunk i] = sum over slots k of group p of weights[t, i, k] * table[row(k), chunk i]``.

    Args:
        table: ``(R, D_v)`` with R >= n * n / E; any number of elements, also beyond 2**31.
        slots: ``(N, K)`` int64 logical slots in ``[0, n * n)``; heads are simply more slots.
        weights: ``(N, h, K)``; the D_v columns fall into h equal chunks, one a core.
        num_keys: n, the logical keys of a side.
        expansion: E, the groups. Which row and group a slot has: `ultramem.ops.physical_rows`.
        seed: of the slots' permutation.
        first_row: where the n * n / E rows of these slots begin in a larger table; behind its last row they go on at 0.
        by_group: keep the groups apart; else a single group pools all slots (UltraMemV2).
        sparse: as in ``torch.nn.Embedding``: the table's gradient is a coalesced sparse tensor of the touched rows.

    Returns:
        ``(N, E, D_v)`` in the table's dtype, ``(N, 1, D_v)`` where groups are not kept apart. Gradients flow to the
        table and to the weights.

    Raises:
        ValueError: shapes do not belong together.

    Example:
        >>> pooled = lookup(torch.randn(9, 8), torch.randint(36, (5, 3)), torch.randn(5, 2, 3), num_keys=6, expansion=4)
        >>> pooled.shape
        torch.Size([5, 4, 8])
    """
    num_tokens, num_cores, num_slots = weights.shape
    if slots.shape != (num_tokens, num_slots):
        raise ValueError(f"slots {tuple(slots.shape)} do not fit weights {tuple(weights.shape)}")
    placement = Placement(num_keys, expansion, seed, first_row)
    check_placement(table, placement)
    if table.shape[1] % num_cores:
        raise ValueError(f"table width {table.shape[1]} does not divide into {num_cores} cores")
    operation = _lookup_sparse if sparse else _lookup
    return operation(table, slots, weights, placement, expansion if by_group else 1)


def _setup_context(ctx, inputs, output):
    table, slots, weights, ctx.placement, ctx.num_groups = inputs
    ctx.save_for_backward(table, slots, weights)


def _fake_pooled(table, slots, weights, placement, num_groups):
    return table.new_empty(slots.shape[0], num_groups, table.shape[1])


@on_its_device
def _lookup_on_gpu(table, slots, weights, placement, num_groups):
    if reference_answers(table, weights):
        return reference.lookup(table, slots, weights, Placement(*placement), num_groups)
    from ultramem.ops.lookup import kernels  # Triton need not be there without a GPU.

    return kernels.lookup(table, slots, weights, Placement(*placement), num_groups)


@torch.library.custom_op("ultramem::lookup", mutates_args=(), device_types="cpu")
def _lookup(table: Tensor, slots: Tensor, weights: Tensor, placement: Sequence[int], num_groups: int) -> Tensor:
    return reference.lookup(table, slots, weights, Placement(*placement), num_groups)


@torch.library.custom_op("ultramem::lookup_backward", mutates_args=(), device_types="cpu")
def _lookup_backward(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Sequence[int], num_groups: int
) -> tuple[Tensor, Tensor]:
    return reference.lookup_backward(grad_pooled, table, slots, weights, Placement(*placement), num_groups)


@_lookup_backward.register_kernel("cuda")
@on_its_device
def _(grad_pooled, table, slots, weights, placement, num_groups):
    if reference_answers(table, weights):
        return reference.lookup_backward(grad_pooled, table, slots, weights, Placement(*placement), num_groups)
    from ultramem.ops.lookup import backward_kernels

    return backward_kernels.lookup_backward(grad_pooled, table, slots, weights, Placement(*placement), num_groups)


@_lookup_backward.register_fake
def _(grad_pooled, table, slots, weights, placement, num_groups):
    return table.new_empty(table.shape), weights.new_empty(weights.shape)


def _backward(ctx, grad_pooled):
    grad_table, grad_weights = _lookup_backward(grad_pooled, *ctx.saved_tensors, ctx.placement, ctx.num_groups)
    return grad_table, None, grad_weights, None, None


_lookup.register_kernel("cuda", _lookup_on_gpu)
_lookup.register_fake(_fake_pooled)
_lookup.register_autograd(_backward, setup_context=_setup_context)


# The same operation whose table gradient arrives as touched rows: the choice is made once, not in the backward pass.
@torch.library.custom_op("ultramem::lookup_sparse", mutates_args=(), device_types="cpu")
def _lookup_sparse(table: Tensor, slots: Tensor, weights: Tensor, placement: Sequence[int], num_groups: int) -> Tensor:
    return reference.lookup(table, slots, weights, Placement(*placement), num_groups)


@torch.library.custom_op("ultramem::lookup_backward_rows", mutates_args=(), device_types="cpu")
def _lookup_backward_rows(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Sequence[int], num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.lookup_backward_rows(grad_pooled, table, slots, weights, Placement(*placement), num_groups)


@_lookup_backward_rows.register_kernel("cuda")
@on_its_device
def _(grad_pooled, table, slots, weights, placement, num_groups):
    if reference_answers(table, weights):
        return reference.lookup_backward_rows(grad_pooled, table, slots, weights, Placement(*placement), num_groups)
    from ultramem.ops.lookup import backward_kernels

    return backward_kernels.lookup_backward_rows(grad_pooled, table, slots, weights, Placement(*placement), num_groups)


@_lookup_backward_rows.register_fake
def _(grad_pooled, table, slots, weights, placement, num_groups):
    touched = torch.library.get_ctx().new_dynamic_size()
    return slots.new_empty(touched), table.new_empty(touched, table.shape[1]), weights.new_empty(weights.shape)


def _backward_rows(ctx, grad_pooled):
    table, *others = ctx.saved_tensors  # once: activation checkpointing unpacks a tensor a single time
    rows, grad_rows, grad_weights = _lookup_backward_rows(grad_pooled, table, *others, ctx.placement, ctx.num_groups)
    grad_table = torch.sparse_coo_tensor(rows[None], grad_rows, table.shape, is_coalesced=True, check_invariants=False)
    return grad_table, None, grad_weights, None, None


_lookup_sparse.register_kernel("cuda", _lookup_on_gpu)
_lookup_sparse.register_fake(_fake_pooled)
_lookup_sparse.register_autograd(_backward_rows, setup_context=_setup_context)
