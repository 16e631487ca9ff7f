"""One gradient norm over everything: dense gradients and the touched rows of tables."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their common 2-norm is at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``, but sparse gradients are welcome: rows that several micro-batches touched are
    summed first, so that each counts once, with its whole gradient. A norm that is not finite scales nothing, so that
    one can see where it came from.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: ``math.inf`` only measures.

    Returns:
        The norm before scaling: float32 scalar on the gradients' device.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradients([parameter], 1.0), parameter.grad
        (tensor(5.), tensor([0.6000, 0.8000]))
    """
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = torch.nn.utils.get_total_norm(values)
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(values, torch.where(norm.isfinite(), scale, 1.0))
    return norm
