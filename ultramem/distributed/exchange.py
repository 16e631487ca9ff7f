"""What the shards of a table tell each other in a forward pass, and its transpose in the backward pass."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh

# torch 2.13 renamed it and warns of the old name; 2.11 has only that.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def exchange(pieces: Tensor, send: Sequence[int], receive: Sequence[int], axis: DeviceMesh) -> Tensor:
    """Give every process of an axis its piece, and get one from each: a differentiable all-to-all.

    Nobody waits before the result is used. The backward pass sends the gradients the way back.

    Args:
        pieces: ``(sum(send), ...)``, the pieces for process 0, 1, ... of the axis behind each other.
        send: length of each piece.
        receive: length of the piece that comes from each process.
        axis: a mesh of one dimension.

    Returns:
        ``(sum(receive), ...)``, the pieces in the order of the processes.
    """
    exchanged = all_to_all_single_autograd if pieces.requires_grad else all_to_all_single
    return exchanged(pieces.contiguous(), list(receive), list(send), axis)


class Gathering:
    """Every process's tensor behind each other, on its way; all have one shape.

    Args:
        piece: ``(N, ...)``.
        axis: a mesh of one dimension.
    """

    def __init__(self, piece: Tensor, axis: DeviceMesh):
        self._whole = piece.new_empty(axis.size() * piece.shape[0], *piece.shape[1:])
        self._work = _all_gather(self._whole, piece.contiguous(), axis.get_group(), async_op=True)

    def wait(self) -> Tensor:
        """Return ``(P * N, ...)``."""
        assert self._work is not None
        self._work.wait()
        return self._whole


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The tensor as it is; its gradient times a factor."""
    return _ScaleGradient.apply(tensor, factor)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
