"""One gradient norm over everything: dense gradients, the touched rows of tables, parts that other processes have."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their common 2-norm is at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``, but sparse gradients are welcome: rows that several micro-batches touched are
    summed first, so that each counts once, with its whole gradient. So are DTensors, on several meshes: the squares of
    a mesh are summed over the axes that its gradients are split over, not over those that repeat them; all processes
    call it together and get one norm. A norm that is not finite scales nothing, so that one can see where it came from.

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
            square = norm.square()
            dist.all_reduce(square, group=mesh.get_group(axis))
            norm = square.sqrt()
        norms.append(norm)
    norm = norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms)
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    scale = torch.where(norm.isfinite(), scale, 1.0)
    alike = defaultdict(list)
    for value in chain.from_iterable(values.values()):
        alike[value.dtype].append(value)
    for dtype, same_dtype in alike.items():  # one kernel scales many tensors only where all have the factor's dtype
        torch._foreach_mul_(same_dtype, scale.to(dtype))
    return norm


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
