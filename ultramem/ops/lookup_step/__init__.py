"""Lookup step: a lookup's backward and the table's AdamW step in one pass, without a gradient of the table.

The gradient of a row is complete where the sorted backward walk leaves the row. If nothing else needs it (no
accumulation over several batches, no clipping, no other reader of the table), it can step the row there and then.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ultramem.ops.devices import on_its_device
from ultramem.ops.lookup import check_placement
from ultramem.ops.lookup.permutation import Placement
from ultramem.ops.lookup_step import reference
from ultramem.ops.reference_mode import reference_answers


def lookup_step(
    grad_pooled: Tensor,
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    slots: Tensor,
    weights: Tensor,
    *,
    placement: Placement,
    step: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    lazy: bool = False,
    seed: int = 0,
) -> Tensor:
    """What `ultramem.ops.lookup`'s backward and `ultramem.ops.row_adam` do, in place; returns the weights' gradient.

    Args:
        grad_pooled: ``(N, groups, D_v)``, the gradient of what `lookup` returned.
        table: ``(R, D_v)``, changed in place.
        exp_avg: ``(R, D_v)``, changed in place.
        exp_avg_sq: ``(R, D_v)`` or ``(R, 1)`` (one second moment a row), changed in place.
        slots: ``(N, K)`` int64, as given to `lookup`.
        weights: ``(N, h, K)``, as given to `lookup`.
        placement: of the slots in the table, as given to `lookup`.
        step: scalar tensor: the step being taken, counted from 1.
        learning_rate: of this step.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled.
        lazy: step only the rows that were read; else all, as dense AdamW does.
        seed: of the stochastic rounding of a bfloat16 table.

    Returns:
        ``(N, h, K)``: the gradient of the weights, by the table before the step.

    Raises:
        ValueError: the second moment has neither one number a row nor one an element.

    Example:
        >>> table, exp_avg, exp_avg_sq = torch.ones(9, 4), torch.zeros(9, 4), torch.zeros(9, 1)
        >>> reads, step = (torch.tensor([[3, 3]]), torch.ones(1, 1, 2)), torch.tensor(1.0)
        >>> adam = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0}
        >>> adam |= {"placement": Placement(3), "step": step}
        >>> lookup_step(torch.ones(1, 1, 4), table, exp_avg, exp_avg_sq, *reads, **adam)
        tensor([[[4., 4.]]])
        >>> table[2:4, 0]
        tensor([1.0000, 0.9000])
    """
    if exp_avg_sq.shape not in (table.shape, (table.shape[0], 1)):
        raise ValueError(
            f"exp_avg_sq {tuple(exp_avg_sq.shape)}: it must be {tuple(table.shape)} or {(table.shape[0], 1)}"
        )
    check_placement(table, placement)
    settings = (learning_rate, beta1, beta2, epsilon, weight_decay, lazy, seed)
    return _lookup_step(grad_pooled, table, exp_avg, exp_avg_sq, slots, weights, step, placement, *settings)


@torch.library.custom_op("ultramem::lookup_step", mutates_args=("table", "exp_avg", "exp_avg_sq"), device_types="cpu")
def _lookup_step(
    grad_pooled: Tensor,
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    slots: Tensor,
    weights: Tensor,
    step: Tensor,
    placement: Sequence[int],
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    lazy: bool,
    seed: int,
) -> Tensor:
    tensors = (grad_pooled, table, exp_avg, exp_avg_sq, slots, weights, step)
    settings = (learning_rate, beta1, beta2, epsilon, weight_decay, lazy, seed)
    return reference.lookup_step(*tensors, Placement(*placement), *settings)


@_lookup_step.register_kernel("cuda")
@on_its_device
def _(grad_pooled, table, exp_avg, exp_avg_sq, slots, weights, step, placement, *settings):
    tensors = (grad_pooled, table, exp_avg, exp_avg_sq, slots, weights, step)
    if reference_answers(table):
        return reference.lookup_step(*tensors, Placement(*placement), *settings)
    from ultramem.ops.lookup_step import kernels  # Triton need not be there without a GPU.

    return kernels.lookup_step(*tensors, Placement(*placement), *settings)


@_lookup_step.register_fake
def _(grad_pooled, table, exp_avg, exp_avg_sq, slots, weights, *settings):
    return torch.empty_like(weights)
