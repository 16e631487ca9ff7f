"""Times on a GPU, and the two speeds that floors are measured in."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor
from triton.testing import do_bench, do_bench_cudagraph

SECONDS = 0.02  # a measurement


def microseconds(function: Callable[[], object]) -> float:
    """Median; the L2 cache is emptied before every call, and the host's launches count where they are the slower."""
    return do_bench(function, warmup=10, rep=SECONDS * 1e3, return_mode="median") * 1e3


def microseconds_in_graph(function: Callable[[], object], calls: int = 1) -> float:
    """Median of replays in a CUDA graph, where launches cost little and small inputs stay in the L2 cache.

    Args:
        function: what to capture.
        calls: how many times it does what is to be timed.
    """
    torch.cuda.synchronize()  # the graph is captured on a stream of its own, which waits for nobody
    return do_bench_cudagraph(function, rep=SECONDS * 1e3, return_mode="median") * 1e3 / calls


def backward_pass(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], gradient: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """What computes the gradients of the leaves, and can be captured.

    The forward pass runs once, at the first call: autograd works on the stream of the forward pass, which must be one
    that a capture may wait for, not the default one.

    Args:
        function: of all leaves.
        leaves: tensors that require gradients.
        gradient: of what the function returns, in any dtype.
    """

    @cache
    def forward() -> tuple[Tensor, Tensor]:
        output = function(*leaves)
        return output, gradient.to(output.dtype)

    def backward() -> tuple[Tensor, ...]:
        output, given = forward()
        return torch.autograd.grad(output, leaves, given, retain_graph=True)

    return backward


def copy_speed() -> float:
    """Bytes a microsecond that a device copy reads and writes."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * num_bytes(source) / microseconds(lambda: target.copy_(source))


def product_speed() -> float:
    """Floating-point operations a microsecond of a large bfloat16 product."""
    left, right = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16).unbind()
    return 2 * 8192**3 / microseconds(lambda: left @ right)


def num_bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def ratios(ours: float, floor: float, peers: Mapping[str, float | None]) -> dict[str, float | None]:
    """The floor's share of our time, and how many times faster than each peer we are."""
    faster = {f"{name}_ratio": time and time / ours for name, time in peers.items()}
    return {"share_of_floor": floor / ours} | faster
