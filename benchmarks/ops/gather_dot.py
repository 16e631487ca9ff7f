"""Products of chosen rows with their token's input on a GPU: ``python -m benchmarks.ops.gather_dot``.

The floor is the bytes at the speed of a device copy in the same run: every row that is read, forward and, for the
gradient of the inputs, backward; times are microseconds. Passes run in CUDA graphs, ours and the peer's alike, so that
neither launches nor autograd's own work count. What an L2 cache of 60 MB may hold from one call to the next are inputs
and products: forward, calls read other rows in turn; backward, a dense gradient of the table, 400 MB or more, passes
through it. Only the backward pass to touched rows is timed call by call, with an empty cache: the host waits for their
number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.peers import left_out_if_broken
from benchmarks.ops.timing import (
    backward_pass,
    copy_speed,
    microseconds,
    microseconds_in_graph,
    num_bytes,
    ratios,
)
from benchmarks.record import show, write
from ultramem import ops


class Size(NamedTuple):
    """A table of ``num_keys ** 2 / expansion`` rows, of which every token reads some."""

    num_keys: int
    width: int
    slots: int
    tokens: int
    expansion: int = 1

    def __str__(self) -> str:
        rows = self.num_keys**2 / self.expansion / 1e6
        return f"{rows:.2f}M x {self.width}, {self.slots} rows of {self.tokens} tokens"


# UltraMemV2's pre-values, and the down vectors of PEER.
FORWARD = [
    *(Size(2048, 192, 32, tokens, expansion=4) for tokens in (64, 512, 8192, 32768)),
    Size(1024, 1024, 128, 64),
    Size(1024, 1024, 128, 8192),
]
BACKWARD = [size for size in FORWARD if size.tokens > 512]


def operands(size: Size, device: str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    """Table, slots and inputs."""
    torch.manual_seed(0)
    table = torch.randn(size.num_keys**2 // size.expansion, size.width, device=device, dtype=torch.bfloat16)
    return table, draw_slots(size, device), torch.randn(size.tokens, size.width, device=device, dtype=table.dtype)


def draw_slots(size: Size, device: str = "cuda") -> Tensor:
    return torch.randint(size.num_keys**2, (size.tokens, size.slots), device=device)


def gather_dot(table: Tensor, slots: Tensor, inputs: Tensor, size: Size, sparse: bool = False) -> Tensor:
    """Ours."""
    return ops.gather_dot(table, slots, inputs, num_keys=size.num_keys, expansion=size.expansion, sparse=sparse)


def gather_and_einsum(table: Tensor, slots: Tensor, inputs: Tensor, size: Size) -> Tensor:
    """What one would write: gather the rows, multiply them with the inputs, sum."""
    rows, _ = ops.physical_rows(slots, size.num_keys, size.expansion, 0)
    return torch.einsum("nkd,nd->nk", F.embedding(rows, table), inputs)


def forward_row(size: Size, copy: float) -> dict[str, Any]:
    """A forward pass, one of several whose rows together exceed the L2 cache."""
    table, slots, inputs = operands(size)
    products = gather_dot(table, slots, inputs, size)
    drawn = [draw_slots(size) for _ in range(24 if size.tokens <= 1024 else 2)]

    def measure(function: Callable[..., Tensor]) -> float:
        return microseconds_in_graph(lambda: [function(table, some, inputs, size) for some in drawn], len(drawn))

    floor = (rows_read(size, table) + num_bytes(slots, inputs, products)) / copy
    with torch.no_grad():
        return row(size, floor, {"ours": measure(gather_dot)}, {"gather_einsum": measure(gather_and_einsum)})


def backward_row(size: Size, copy: float) -> dict[str, Any]:
    """A backward pass to a dense gradient of the table, ours also to touched rows."""
    table, slots, inputs = operands(size)
    gradient = torch.randn(size.tokens, size.slots, device="cuda")
    leaves = table.requires_grad_(), inputs.requires_grad_()

    def backward(function: Callable[..., Tensor], **settings: bool) -> Callable[[], tuple[Tensor, ...]]:
        return backward_pass(lambda table, inputs: function(table, slots, inputs, size, **settings), leaves, gradient)

    floor = (rows_read(size, table) + num_bytes(gradient, slots, inputs, inputs, table)) / copy
    ours = {
        "ours": microseconds_in_graph(backward(gather_dot)),
        "ours_rows": microseconds(backward(gather_dot, sparse=True)),
    }
    peers: dict[str, float | None] = {"gather_einsum": None}
    with left_out_if_broken(f"gather_einsum, backward, {size},"):
        peers["gather_einsum"] = microseconds_in_graph(backward(gather_and_einsum))
    return row(size, floor, ours, peers)


def rows_read(size: Size, table: Tensor) -> int:
    """Bytes."""
    return size.tokens * size.slots * size.width * table.element_size()


def row(size: Size, floor: float, ours: dict[str, float], peers: dict[str, float | None]) -> dict[str, Any]:
    """One line of the table; ratios are of the first of ours."""
    times = {"floor": floor, **ours, **peers}
    return (
        {"size": str(size)} | {f"{name}_us": time for name, time in times.items()} | ratios(ours["ours"], floor, peers)
    )


def main() -> None:
    """Measures, prints tables and keeps the rows."""
    copy = copy_speed()
    print(f"{torch.cuda.get_device_name()}: copies {copy / 1e6:.2f} TB/s read and written")
    for name, sizes, measure in (
        ("gather_dot", FORWARD, forward_row),
        ("gather_dot_backward", BACKWARD, backward_row),
    ):
        rows = []
        for size in sizes:
            rows.append(measure(size, copy))
            torch.cuda.empty_cache()
        show(rows, title=name.replace("_", " "))
        print(f"kept in {write(rows, name)}")


if __name__ == "__main__":
    main()
