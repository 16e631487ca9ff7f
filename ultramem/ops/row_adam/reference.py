"""AdamW on chosen rows in plain PyTorch: gather the rows, step them, write them back.

Shapes: R rows of the table, U of them touched, D_v width.
"""

import torch
from torch import Tensor


def row_adam(
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
    """See `ultramem.ops.row_adam`."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    gradients_UD = row_gradients.to(dtype)
    step = step.to(parameter.device, dtype)
    exp_avg_UD = exp_avg[rows].to(dtype).lerp_(gradients_UD, 1 - beta1)
    exp_avg_sq_UD = exp_avg_sq[rows].to(dtype).mul_(beta2).addcmul_(gradients_UD, gradients_UD, value=1 - beta2)
    denominator_UD = (exp_avg_sq_UD / (1 - beta2**step)).sqrt_().add_(epsilon)
    update_UD = exp_avg_UD / denominator_UD * (learning_rate / (1 - beta1**step))
    parameter_UD = parameter[rows].to(dtype).mul_(1 - learning_rate * weight_decay).sub_(update_UD)

    parameter.index_copy_(0, rows, parameter_UD.to(parameter.dtype))
    exp_avg.index_copy_(0, rows, exp_avg_UD.to(exp_avg.dtype))
    exp_avg_sq.index_copy_(0, rows, exp_avg_sq_UD.to(exp_avg_sq.dtype))
