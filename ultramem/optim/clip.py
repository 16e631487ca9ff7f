"""One gradient norm over everything: dense gradients, the touched rows of tables, parts that other processes have.

A loop with a `RowAdamW` measures the norm, and has each optimizer step by the factor: a table's gradient, by far the
largest, is multiplied where it is read. Any other loop clips all gradients in place.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim.optimizer import Optimizer

from ultramem.ops.precision import accumulation_dtype
from ultramem.optim.row_adam import RowAdamW


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their common 2-norm is at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``, but for all gradients that `gradient_norm` takes. A norm that is not finite
    scales nothing, so that one can see where it came from.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: ``math.inf`` only measures.

    Returns:
        The norm before scaling, as `gradient_norm` has it.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradients([parameter], 1.0), parameter.grad
        (tensor(5.), tensor([0.6000, 0.8000]))
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    _scale(parameters, clip_factor(norm, max_norm))
    return norm


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The common 2-norm of all gradients.

    Sparse gradients are welcome: rows that several micro-batches touched are summed first, so that each counts once,
    with its whole gradient. So are DTensors, on several meshes: the squares of a mesh are summed over the axes that its
    gradients are split over, not over those that repeat them; all processes call it together and get one norm.

    Args:
        parameters: those without a gradient are passed over. A sparse gradient is coalesced.

    Returns:
        Scalar on the gradients' device, of their widest dtype; of float32 at least where they are divided. PyTorch
        rounds the norm of each gradient to its dtype before they are joined, so a bfloat16 gradient's is exact to a
        share of 2**-9.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([3.0, 4.0])
        >>> gradient_norm([parameter])
        tensor(5.)
    """
    values: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse and not isinstance(parameter.grad, DTensor):
            parameter.grad = parameter.grad.coalesce()
        values[_split(parameter.grad)].append(_values(parameter.grad))
    norms = []
    for (mesh, split_axes), local_values in values.items():
        norm = torch.nn.utils.get_total_norm(local_values)
        for axis in split_axes:
            assert mesh is not None
            square = norm.to(accumulation_dtype(norm.dtype)).square()
            dist.all_reduce(square, group=mesh.get_group(axis))
            norm = square.sqrt()
        norms.append(norm)
    return norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms)


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of a norm are multiplied by so that it is at most ``max_norm``; no device waits for it.

    Args:
        norm: of `gradient_norm`.
        max_norm: ``math.inf`` gives 1.

    Returns:
        Scalar of at most 1, float32 or wider; 1 where the norm is not finite.

    Example:
        >>> clip_factor(torch.tensor(5.0), 1.0)
        tensor(0.2000)
    """
    norm = norm.to(accumulation_dtype(norm.dtype))
    return torch.where(norm.isfinite(), torch.clamp(max_norm / (norm + 1e-6), max=1.0), 1.0)


def clipped_step(optimizer: Optimizer, factor: Tensor) -> None:
    """Take an optimizer's step with all its gradients multiplied by a factor.

    `RowAdamW` multiplies them in float32 as it reads them (see its `step`), any other optimizer's are scaled in place
    before. There is no closure.

    Args:
        optimizer: of all or some parameters whose norm was measured.
        factor: scalar of `clip_factor`.

    Example:
        >>> table, weight = torch.nn.Parameter(torch.ones(9, 4)), torch.nn.Parameter(torch.ones(3))
        >>> optimizers = [torch.optim.AdamW([weight]), RowAdamW([table])]
        >>> (table.sum() + weight.sum()).backward()
        >>> factor = clip_factor(gradient_norm([table, weight]), 1.0)
        >>> for optimizer in optimizers:
        ...     clipped_step(optimizer, factor)
    """
    if isinstance(optimizer, RowAdamW):
        optimizer.step(gradient_factor=factor)
    else:
        _scale((parameter for group in optimizer.param_groups for parameter in group["params"]), factor)
        optimizer.step()


@torch.no_grad()
def _scale(parameters: Iterable[Tensor], factor: Tensor) -> None:
    """Multiply all gradients in place by the factor, rounded to their dtype."""
    alike = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            values = _values(parameter.grad)
            alike[values.dtype].append(values)
    for dtype, same_dtype in alike.items():  # one kernel scales many tensors only where all have the factor's dtype
        torch._foreach_mul_(same_dtype, factor.to(dtype))


def _split(gradient: Tensor) -> tuple[DeviceMesh | None, tuple[int, ...]]:
    """The mesh that a gradient lies on, and the axes of it over which it is split."""
    if not isinstance(gradient, DTensor):
        return None, ()
    axes = tuple(axis for axis, placement in enumerate(gradient.placements) if isinstance(placement, Shard))
    return gradient.device_mesh, axes


def _values(gradient: Tensor) -> Tensor:
    """All numbers of this process's part."""
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return local.values() if local.is_sparse else local
