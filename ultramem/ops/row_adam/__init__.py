"""Row Adam: one AdamW step of the touched rows of a table, in place; other rows and their state stay as they are.

AdamW is Loshchilov and Hutter, arXiv 1711.05101; to leave untouched rows alone is its "lazy" variant for embeddings.
"""

import torch
from torch import Tensor

from ultramem.ops.row_adam import reference


def row_adam(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    row_gradients: Tensor,
    *,
    step: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """Step ``parameter[rows]`` with AdamW, and the same rows of both moments.

    Args:
        parameter: ``(R, D_v)``, changed in place.
        exp_avg: ``(R, D_v)``, the first moment, changed in place.
        exp_avg_sq: ``(R, D_v)``, the second moment, changed in place.
        rows: ``(U,)`` int64, every row at most once.
        row_gradients: ``(U, D_v)``.
        step: scalar tensor: the step being taken, counted from 1 (bias correction); a tensor, so that no device waits.
        learning_rate: of this step.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled; only the touched rows are decayed.

    Raises:
        ValueError: shapes do not belong together.

    Example:
        >>> table, exp_avg, exp_avg_sq = torch.ones(9, 4), torch.zeros(9, 4), torch.zeros(9, 4)
        >>> settings = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0}
        >>> rows, gradients, step = torch.tensor([7]), torch.ones(1, 4), torch.tensor(1.0)
        >>> row_adam(table, exp_avg, exp_avg_sq, rows, gradients, step=step, **settings)
        >>> table[6:8, 0]
        tensor([1.0000, 0.9000])
    """
    if not parameter.shape == exp_avg.shape == exp_avg_sq.shape:
        shapes = [tuple(tensor.shape) for tensor in (parameter, exp_avg, exp_avg_sq)]
        raise ValueError(f"parameter, exp_avg and exp_avg_sq must have one shape, not {shapes}")
    if row_gradients.shape != (rows.shape[0], parameter.shape[1]):
        raise ValueError(
            f"{rows.shape[0]} rows of a table {tuple(parameter.shape)}: {tuple(row_gradients.shape)} is wrong"
        )
    _row_adam(
        parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, learning_rate, beta1, beta2, epsilon, weight_decay
    )


@torch.library.custom_op("ultramem::row_adam", mutates_args=("parameter", "exp_avg", "exp_avg_sq"))
def _row_adam(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    row_gradients: Tensor,
    step: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    reference.row_adam(
        parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, learning_rate, beta1, beta2, epsilon, weight_decay
    )


@_row_adam.register_fake
def _(parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, learning_rate, beta1, beta2, epsilon, weight_decay):
    return None
