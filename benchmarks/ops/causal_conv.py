"""The causal convolution on a GPU, forward and backward, against PyTorch: ``python -m benchmarks.ops.causal_conv``.

The floor is every tensor once at the speed of a device copy in the same run; times are microseconds. A step of decoding
is part of `benchmarks.memory_layer`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.timing import copy_speed, microseconds, num_bytes, ratios
from benchmarks.record import show, write
from ultramem import ops


class Size(NamedTuple):
    """Sequences of some tokens and channels."""

    sequences: int
    tokens: int
    channels: int
    taps: int = 4

    def __str__(self) -> str:
        return f"{self.sequences} x {self.tokens} tokens of {self.channels}, {self.taps} taps"


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
    hidden_states, weight = operands(size)
    gradient = torch.randn_like(hidden_states)
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ours": ops.causal_conv,
        "shifted_products": shifted_products,
        "compiled": torch.compile(shifted_products, dynamic=False),
        "depthwise": depthwise,
    }

    def forward(function: Callable[[Tensor, Tensor], Tensor]) -> float:
        return microseconds(lambda: function(hidden_states, weight))

    def backward(function: Callable[[Tensor, Tensor], Tensor]) -> float:
        leaves = hidden_states.detach().requires_grad_(), weight.detach().requires_grad_()
        convolved = function(*leaves)
        return microseconds(lambda: torch.autograd.grad(convolved, leaves, gradient, retain_graph=True))

    with torch.no_grad():
        forwards = {name: forward(function) for name, function in functions.items()}
    backwards = {name: backward(function) for name, function in functions.items()}
    return row(size, 2 * num_bytes(gradient) / copy, forwards), row(size, 3 * num_bytes(gradient) / copy, backwards)


def row(size: Size, floor: float, times: dict[str, float]) -> dict[str, Any]:
    """One line of the table."""
    peers = {name: time for name, time in times.items() if name != "ours"}
    all_times = {f"{name}_us": time for name, time in ({"floor": floor} | times).items()}
    return {"size": str(size)} | all_times | ratios(times["ours"], floor, peers)


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
