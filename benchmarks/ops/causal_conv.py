"""The causal convolution on a GPU, forward and backward, against PyTorch: ``python -m benchmarks.ops.causal_conv``.

The floor is every tensor once at the speed of a device copy in the same run; times are microseconds. Both passes run in
CUDA graphs, ours and the peers' alike, so that neither launches nor autograd's own work count, over several sets of
tensors in turn: they exceed an L2 cache of 60 MB together, so only weights stay in it from one call to the next. A step
of decoding is part of `benchmarks.memory_layer`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.peers import left_out_if_broken
from benchmarks.ops.timing import backward_pass, copy_speed, microseconds_in_graph, num_bytes, ratios
from benchmarks.record import show, write
from ultramem import ops

Convolution = Callable[[Tensor, Tensor], Tensor]
"""Of hidden states and the weight."""


class Size(NamedTuple):
    """Sequences of some tokens and channels."""

    sequences: int
    tokens: int
    channels: int
    taps: int = 4

    def __str__(self) -> str:
        return f"{self.sequences} x {self.tokens} tokens of {self.channels}, {self.taps} taps"


SETS = 4  # of tensors, which calls use in turn
SIZES = [Size(16, 2048, 1024), Size(16, 2048, 2048), Size(4, 2048, 1024)]


def operands(size: Size, device: str = "cuda") -> tuple[Tensor, Tensor]:
    """Hidden states and the weight."""
    torch.manual_seed(0)
    hidden_states = torch.randn(size.sequences, size.tokens, size.channels, device=device, dtype=torch.bfloat16)
    return hidden_states, torch.randn(size.channels, size.taps, device=device, dtype=torch.bfloat16)


def shifted_products(hidden_states: Tensor, weight: Tensor) -> Tensor:
    """What one would write without a convolution; a compiler fuses it."""
    length, reach = hidden_states.shape[1], weight.shape[1] - 1
    sequence = F.pad(hidden_states, (0, 0, reach, 0))
    taps = weight.unbind(dim=1)
    convolved = sequence[:, :length] * taps[0]
    for shift, tap in enumerate(taps[1:], start=1):
        convolved = torch.addcmul(convolved, sequence[:, shift : shift + length], tap)
    return convolved


def depthwise(hidden_states: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's own convolution, channels first."""
    padded = F.pad(hidden_states.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.conv1d(padded, weight[:, None], groups=weight.shape[0]).transpose(1, 2)


def rows(size: Size, copy: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A forward pass, and a backward pass to both gradients."""
    sets = [operands(size) for _ in range(SETS)]
    gradients = [torch.randn_like(hidden_states) for hidden_states, _ in sets]
    peers: dict[str, Convolution] = {
        "shifted_products": shifted_products,
        "compiled": torch.compile(shifted_products, dynamic=False),
        "depthwise": depthwise,
    }

    def forward(function: Convolution) -> float:
        return microseconds_in_graph(lambda: [function(*each) for each in sets], SETS)

    def backward(function: Convolution) -> float:
        leaves = [[tensor.detach().requires_grad_() for tensor in each] for each in sets]
        passes = [backward_pass(function, *each) for each in zip(leaves, gradients, strict=True)]
        return microseconds_in_graph(lambda: [each() for each in passes], SETS)

    with torch.no_grad():
        forwards = all_times(forward, peers, f"forward, {size},")
    backwards = all_times(backward, peers, f"backward, {size},")
    once = num_bytes(gradients[0]) / copy
    return row(size, 2 * once, *forwards), row(size, 3 * once, *backwards)


def all_times(
    measure: Callable[[Convolution], float], peers: Mapping[str, Convolution], what: str
) -> tuple[float, dict[str, float | None]]:
    """Ours and the peers', none of a peer that cannot be captured."""
    times: dict[str, float | None] = dict.fromkeys(peers)
    for name, peer in peers.items():
        with left_out_if_broken(f"{name}, {what}"):
            times[name] = measure(peer)
    return measure(ops.causal_conv), times


def row(size: Size, floor: float, ours: float, peers: Mapping[str, float | None]) -> dict[str, Any]:
    """One line of the table."""
    times = {"floor": floor, "ours": ours, **peers}
    return {"size": str(size)} | {f"{name}_us": time for name, time in times.items()} | ratios(ours, floor, peers)


def main() -> None:
    """Measures, prints tables and keeps the rows."""
    copy = copy_speed()
    print(f"{torch.cuda.get_device_name()}: copies {copy / 1e6:.2f} TB/s read and written")
    measured = [rows(size, copy) for size in SIZES]
    for name, number in (("causal_conv", 0), ("causal_conv_backward", 1)):
        table = [pair[number] for pair in measured]
        show(table, title=name.replace("_", " "))
        print(f"kept in {write(table, name)}")


if __name__ == "__main__":
    main()
