"""What the shards of a table tell each other in a forward pass, and its transpose in the backward pass."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

# torch 2.13 renamed it and warns of the old name; 2.11 has only that.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """A differentiable all-to-all that is started in one place and awaited in another.

    Every process of an axis gives each one its piece, and gets one from each. In the backward pass the gradients go the
    way back: they are sent where the pieces were awaited, and awaited where the pieces were sent. What is computed
    between the two places overlaps in both passes.

    Args:
        send: length of the piece for process 0, 1, ... of the axis.
        receive: length of the piece that comes from each process.
        axis: a mesh of one dimension.
    """

    def __init__(self, send: Sequence[int], receive: Sequence[int], axis: DeviceMesh):
        self._send, self._receive, self._axis = list(send), list(receive), axis

    def start(self, pieces: Tensor) -> Tensor:
        """Send ``(sum(send), ...)``, the pieces behind each other; only `wait` may use what is returned."""
        return _Start.apply(pieces, self)

    def wait(self, arriving: Tensor) -> Tensor:
        """Return ``(sum(receive), ...)``, the pieces in the order of the processes, given what `start` returned."""
        return _Wait.apply(arriving, self)

    def post(self, pieces: Tensor, *, back: bool) -> Tensor:
        """Start one way; what is returned is filled when `all_to_all` has returned it."""
        send, receive = (self._receive, self._send) if back else (self._send, self._receive)
        arriving = pieces.new_empty(sum(receive), *pieces.shape[1:])
        group = self._axis.get_group()
        work = dist.all_to_all_single(arriving, pieces.contiguous(), receive, send, group, async_op=True)
        self._under_way = work, arriving
        return arriving

    def all_to_all(self) -> Tensor:
        """Await what was posted last."""
        work, arriving = self._under_way
        del self._under_way
        work.wait()
        return arriving


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pieces: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.post(pieces, back=False)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.all_to_all(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, arriving: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.all_to_all().detach()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.exchange.post(gradient, back=True)
        return gradient, None  # of the right shape: the gradient of the pieces is awaited by `_Start`


def exchange(pieces: Tensor, send: Sequence[int], receive: Sequence[int], axis: DeviceMesh) -> Tensor:
    """An `Exchange` that is awaited at once."""
    whole = Exchange(send, receive, axis)
    return whole.wait(whole.start(pieces))


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
        return tensor.detach()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
