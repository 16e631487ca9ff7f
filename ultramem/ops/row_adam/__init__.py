"""Row Adam: one AdamW step of a table in place, of all rows or of the touched ones, with as little state as wanted.

AdamW is Loshchilov and Hutter, arXiv 1711.05101; to leave untouched rows alone is its "lazy" variant for embeddings;
one second moment for many elements is Adafactor's and Adam-mini's saving (arXiv 1804.04235, 2406.16793).
"""

import torch
from torch import Tensor

from ultramem.ops.devices import on_its_device
from ultramem.ops.reference_mode import reference_answers
from ultramem.ops.row_adam import reference


def row_adam(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor | None,
    row_gradients: Tensor,
    *,
    step: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    seed: int = 0,
    gradient_factor: Tensor | None = None,
    mean_squares: Tensor | None = None,
) -> None:
    """Step ``parameter[rows]`` with AdamW, and the same rows of both moments; others stay as they are.

    A bfloat16 parameter is rounded stochastically, or small updates would be lost in it; float16 to the nearest.

    Args:
        parameter: ``(R, D_v)``, changed in place.
        exp_avg: ``(R, D_v)``, the first moment, changed in place; may be narrower than float32.
        exp_avg_sq: ``(R, G)``, the second moment, changed in place; G divides D_v. With G = D_v every element has its
            own; else each of the G equal parts of a row has one, the decayed mean of its squared gradients.
        rows: ``(U,)`` int64, every row at most once; None for all.
        row_gradients: ``(U, D_v)``.
        step: scalar tensor: the step being taken, counted from 1 (bias correction); a tensor, so that no device waits.
        learning_rate: of this step.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled; only the stepped rows are decayed.
        seed: of the stochastic rounding, which is a function of seed, step and element.
        gradient_factor: scalar tensor, which multiplies the gradients as they are read, in float32 or wider: clipping
            takes no pass over them. None: 1.
        mean_squares: ``(U, G)``, what the second moment averages; None: the mean of each part's own squared gradients.
            A process that has a few columns of every row gives the means over whole rows, with the factor.

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
    num_rows, width = parameter.shape
    if exp_avg.shape != parameter.shape:
        shapes = [tuple(tensor.shape) for tensor in (parameter, exp_avg)]
        raise ValueError(f"parameter and exp_avg must have one shape, not {shapes}")
    parts = exp_avg_sq.shape[1]
    if exp_avg_sq.shape[0] != num_rows or parts == 0 or width % parts:
        raise ValueError(f"exp_avg_sq {tuple(exp_avg_sq.shape)}: it must be (R, G), G a divisor of the width {width}")
    num_stepped = num_rows if rows is None else rows.shape[0]
    if row_gradients.shape != (num_stepped, width):
        raise ValueError(
            f"{num_stepped} rows of a table {tuple(parameter.shape)}: {tuple(row_gradients.shape)} is wrong"
        )
    if mean_squares is not None and mean_squares.shape != (num_stepped, parts):
        raise ValueError(f"mean_squares {tuple(mean_squares.shape)}: it must be {(num_stepped, parts)}")
    settings = (learning_rate, beta1, beta2, epsilon, weight_decay, seed, gradient_factor, mean_squares)
    _row_adam(parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, *settings)


@torch.library.custom_op("ultramem::row_adam", mutates_args=("parameter", "exp_avg", "exp_avg_sq"), device_types="cpu")
def _row_adam(
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
    seed: int,  # it and what follows without a default: the dispatcher does not pass on what equals one
    gradient_factor: Tensor | None,
    mean_squares: Tensor | None,
) -> None:
    settings = (learning_rate, beta1, beta2, epsilon, weight_decay, seed, gradient_factor, mean_squares)
    reference.row_adam(parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, *settings)


@_row_adam.register_kernel("cuda")
@on_its_device
def _(parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, *settings):
    *kernels_settings, mean_squares = settings
    if reference_answers(parameter) or mean_squares is not None:  # the kernel sums the squares itself
        return reference.row_adam(parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, *settings)
    from ultramem.ops.row_adam import kernels  # Triton need not be there without a GPU.

    return kernels.row_adam(parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, *kernels_settings)


@_row_adam.register_fake
def _(parameter, exp_avg, exp_avg_sq, rows, row_gradients, step, *settings):
    return None
