"""A lookup's backward and the table's step, one after the other, in plain PyTorch."""

from torch import Tensor

from ultramem.ops.lookup import reference as lookup
from ultramem.ops.lookup.permutation import Placement
from ultramem.ops.row_adam import reference as row_adam


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
    read = (grad_pooled, table, slots, weights, placement, grad_pooled.shape[1])
    rows: Tensor | None = None
    if lazy:
        rows, gradients, grad_weights = lookup.lookup_backward_rows(*read)
    else:
        gradients, grad_weights = lookup.lookup_backward(*read)
    settings = (learning_rate, beta1, beta2, epsilon, weight_decay, seed)
    row_adam.row_adam(table, exp_avg, exp_avg_sq, rows, gradients, step, *settings)
    return grad_weights
