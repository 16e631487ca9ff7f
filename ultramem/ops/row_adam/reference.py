"""AdamW on chosen rows in plain PyTorch: gather the rows, step them, write them back.

Shapes: R rows of the table, U of them stepped, D_v width, G parts of a row that have a second moment each.
"""

import torch
from torch import Tensor

from ultramem.ops.mixing import MASK, mix_bits
from ultramem.ops.precision import accumulation_dtype


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
    mean_squares: Tensor | None = None,
) -> None:
    """See `ultramem.ops.row_adam`."""
    dtype = accumulation_dtype(parameter.dtype)
    num_rows, width = parameter.shape
    if rows is None:
        rows = torch.arange(num_rows, device=parameter.device)
    gradients_UD = row_gradients.to(dtype)
    if gradient_factor is not None:
        gradients_UD = gradients_UD * gradient_factor.to(parameter.device, dtype)
    step = step.to(parameter.device, torch.float64)
    correction1, correction2 = (1 - beta1**step).to(dtype), (1 - beta2**step).to(dtype)

    if mean_squares is None:
        mean_squares = gradients_UD.square().unflatten(1, (exp_avg_sq.shape[1], -1)).mean(dim=2)
    exp_avg_UD = exp_avg[rows].to(dtype).lerp_(gradients_UD, 1 - beta1)
    exp_avg_sq_UG = exp_avg_sq[rows].to(dtype).lerp_(mean_squares.to(dtype), 1 - beta2)
    denominator_UG = (exp_avg_sq_UG / correction2).sqrt_().add_(epsilon)
    denominator_UD = denominator_UG.repeat_interleave(width // exp_avg_sq.shape[1], dim=1)
    update_UD = exp_avg_UD / denominator_UD * (learning_rate / correction1)
    parameter_UD = parameter[rows].to(dtype).mul_(1 - learning_rate * weight_decay).sub_(update_UD)

    if parameter.dtype == torch.bfloat16:
        elements_UD = rows[:, None] * width + torch.arange(width, device=rows.device)
        parameter_UD = round_stochastically(parameter_UD, elements_UD, step.long(), seed)
    parameter.index_copy_(0, rows, parameter_UD.to(parameter.dtype))
    exp_avg.index_copy_(0, rows, exp_avg_UD.to(exp_avg.dtype))
    exp_avg_sq.index_copy_(0, rows, exp_avg_sq_UG.to(exp_avg_sq.dtype))


def round_stochastically(values: Tensor, elements: Tensor, step: Tensor, seed: int) -> Tensor:
    """To one of the two nearest bfloat16 numbers, the nearer the likelier, so that the mean is right.

    Args:
        values: float32.
        elements: int64, which number of the table each value is.
        step: int64 scalar.
        seed: any integer.

    Returns:
        float32 numbers that bfloat16 holds exactly.
    """
    key = (seed & MASK) * 0x27D4EB2F + step * 0x85EBCA6B + (elements >> 32) * 0x165667B1
    noise = mix_bits((elements & MASK) * 0x1E3779B1 + key) & 0xFFFF
    rounded = ((values.view(torch.int32) + noise.to(torch.int32)) & -0x10000).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)
