"""The lookup on a GPU, forward, backward and with the row optimizer, against its floor and PyTorch's own operations.

``python -m benchmarks.ops.lookup``. ``--authors PATH --memory-plus PATH`` puts peers' kernels, which must agree with
ours on the same inputs, beside ours, at the sizes of the targets. The floor is the bytes at the speed of a device copy
in the same run; times are microseconds.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.peers import (
    AuthorsLookup,
    LookupPeer,
    MemoryPlusBag,
    MissingPeer,
    add_flags,
    check_agreement,
    left_out_if_broken,
)
from benchmarks.ops.timing import copy_speed, microseconds, microseconds_in_graph, num_bytes, ratios
from benchmarks.record import show, write
from ultramem import ops
from ultramem.ops.lookup.permutation import Placement

SLOTS, EXPANSION, CORES = 84, 4, 2
ADAM = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0}


class Size(NamedTuple):
    """A table of ``num_keys ** 2 / 4`` rows, read by `tokens` tokens."""

    num_keys: int
    width: int
    tokens: int
    skew: str = "uniform"

    def __str__(self) -> str:
        return f"{self.num_keys**2 // EXPANSION / 1e6:.2f}M x {self.width}, {self.tokens} tokens, {self.skew}"


FORWARD = [
    *(Size(2048, 256, tokens) for tokens in (64, 512, 8192, 32768)),
    Size(8192, 192, 32768),
    Size(2048, 384, 32768),
    Size(2048, 1024, 32768),
]
COMPILED = FORWARD[2:3]  # every compilation of the composition takes seconds
BACKWARD = [Size(2048, 256, 8192), Size(2048, 256, 32768), Size(2048, 256, 32768, "zipf"), Size(8192, 192, 32768)]

TARGETS = [Size(2048, 256, 64), Size(2048, 256, 32768), Size(8192, 192, 32768)]


def draw_slots(size: Size) -> Tensor:
    """``(N, 84)``: uniform, or Zipf with exponent 1 over shuffled slots."""
    num_slots = size.num_keys**2
    if size.skew == "uniform":
        return torch.randint(num_slots, (size.tokens, SLOTS), device="cuda")
    uniform = torch.rand(size.tokens, SLOTS, device="cuda", dtype=torch.float64)
    rank = (num_slots**uniform).long().clamp(max=num_slots) - 1
    return rank * 1_000_003 % num_slots


def operands(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Table, slots and weights."""
    torch.manual_seed(0)
    table = torch.randn(size.num_keys**2 // EXPANSION, size.width, device="cuda", dtype=torch.bfloat16)
    return table, draw_slots(size), torch.randn(size.tokens, CORES, SLOTS, device="cuda")


def lookup(table: Tensor, slots: Tensor, weights: Tensor, num_keys: int, sparse: bool = False) -> Tensor:
    """Ours."""
    return ops.lookup(table, slots, weights, num_keys=num_keys, expansion=EXPANSION, sparse=sparse)


def gather_and_einsum(table: Tensor, slots: Tensor, weights: Tensor, num_keys: int) -> Tensor:
    """What one would write: gather the rows, weight them by group and core, sum."""
    rows, groups = ops.physical_rows(slots, num_keys, EXPANSION, 0)
    in_group = F.one_hot(groups, EXPANSION).to(table.dtype)
    values = F.embedding(rows, table).unflatten(-1, (CORES, -1))
    return torch.einsum("nke,nhk,nkhv->nehv", in_group, weights.to(table.dtype), values).flatten(2)


def bag(table: Tensor, slots: Tensor, weights: Tensor, num_keys: int) -> Tensor:
    """PyTorch's embedding bag, which knows neither groups nor cores: less work than ours."""
    return F.embedding_bag(slots // EXPANSION, table, mode="sum", per_sample_weights=weights[:, 0].to(table.dtype))


def forward_row(size: Size, copy: float, others: Sequence[LookupPeer] = ()) -> dict[str, Any]:
    """A forward pass; of few tokens, one of many whose rows exceed the L2 cache, without the launches' time."""
    table, slots, weights = operands(size)
    pooled = lookup(table, slots, weights, size.num_keys)
    floor = (size.tokens * SLOTS * size.width * table.element_size() + num_bytes(slots, weights, pooled)) / copy
    drawn = [draw_slots(size) for _ in range(24)] if size.tokens <= 1024 else []

    def measure(function: Callable[..., Tensor], inputs: Callable[..., tuple] = lambda *given: given) -> float:
        given = [inputs(table, some, weights, size.num_keys) for some in drawn or [slots]]
        if drawn:
            return microseconds_in_graph(lambda: [function(*each) for each in given], len(given))
        return microseconds(lambda: function(*given[0]))

    with torch.no_grad():
        ours = measure(lookup)
        peers: dict[str, float | None] = {"embedding_bag": measure(bag), "gather_einsum": measure(gather_and_einsum)}
        peers["gather_einsum_compiled"] = None
        if size in COMPILED:
            peers["gather_einsum_compiled"] = measure(torch.compile(gather_and_einsum, dynamic=False))
        for other in others:
            peers[other.name] = None
            with left_out_if_broken(f"{other.name}, {size},"):
                if other.can_take(size.width, CORES):
                    given = table, slots, weights, size.num_keys
                    check_agreement(other.name, other.forward(*other.inputs(*given)), other.ours(*given))
                    peers[other.name] = measure(other.forward, other.inputs)
    return row(size, floor, {"ours": ours}, peers)


def backward_row(size: Size, copy: float, others: Sequence[LookupPeer] = ()) -> dict[str, Any]:
    """A backward pass to a dense gradient, ours also to touched rows.

    PyTorch's embedding bag has no gradient of its weights in bfloat16: it is measured in float32.
    """
    table, slots, weights = operands(size)
    touched = ops.physical_rows(slots, size.num_keys, EXPANSION, 0)[0].unique().numel()
    pooled_gradient = torch.randn(size.tokens, EXPANSION, size.width, device="cuda", dtype=table.dtype)
    rows_read = touched * size.width * table.element_size()
    floor = (num_bytes(pooled_gradient, slots, weights, weights, table) + rows_read) / copy

    def measure(function: Callable[..., Tensor], table: Tensor = table, **settings: bool) -> float:
        leaves = table.requires_grad_(), weights.requires_grad_()
        pooled = function(*leaves[:1], slots, weights, size.num_keys, **settings)
        gradient = pooled_gradient[:, 0].to(pooled.dtype) if pooled.ndim == 2 else pooled_gradient
        return microseconds(lambda: torch.autograd.grad(pooled, leaves, gradient, retain_graph=True))

    ours = {"ours": measure(lookup), "ours_rows": measure(lookup, sparse=True)}
    peers: dict[str, float | None] = {"gather_einsum": measure(gather_and_einsum)}
    for other in others:
        peers[other.name] = None
        with left_out_if_broken(f"{other.name}'s backward pass, {size},"):
            peers[other.name] = measure_backward(other, pooled_gradient, table, slots, weights, size.num_keys)
    table = table.detach().float()
    peers["embedding_bag_float32"] = measure(bag, table)
    return row(size, floor, ours, peers)


def measure_backward(
    other: LookupPeer, gradient: Tensor, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int
) -> float | None:
    """The peer's time for all gradients, which must be ours."""
    if not other.can_take(table.shape[1], weights.shape[1]):
        return None
    table, weights = table.detach(), weights.detach()
    run = other.backward(gradient, *other.inputs(table, slots, weights, num_keys))
    leaves = table.requires_grad_(), weights.requires_grad_()
    pooled = other.ours(leaves[0], slots, leaves[1], num_keys)
    expected = torch.autograd.grad(pooled, leaves, gradient[:, : pooled.shape[1]].contiguous())
    for what, theirs, ours in zip(("table", "weights"), run(), expected, strict=True):
        check_agreement(f"{other.name}'s gradient of the {what}", theirs, ours[:, : theirs.shape[1]])
    return microseconds(run)


def optimizer_row(size: Size, copy: float) -> dict[str, Any]:
    """A step of the whole bfloat16 table: with the small state, with the full one, and PyTorch's fused in float32."""
    table, _, _ = operands(size)
    gradient, step = torch.randn_like(table), torch.tensor(1.0, device="cuda")

    def measure(first: Tensor, second: Tensor) -> float:
        return microseconds(lambda: ops.row_adam(table, first, second, None, gradient, step=step, **ADAM))

    wide = torch.zeros(table.shape, device="cuda")
    ours = {
        "ours": measure(torch.zeros_like(table), torch.zeros(len(table), 1, device="cuda")),
        "ours_full": measure(wide, wide.clone()),
    }
    return row(size, 5 * num_bytes(table) / copy, ours, {"adamw_float32": adamw_float32(table)})


def adamw_float32(table: Tensor) -> float:
    """PyTorch's fused step of a table of this size."""
    single = torch.nn.Parameter(table.float())
    single.grad = torch.randn_like(single)
    return microseconds(torch.optim.AdamW([single], fused=True).step)


def step_row(size: Size, copy: float, others: Sequence[LookupPeer] = ()) -> dict[str, Any]:
    """Backward and the whole table's step with the small state: in one pass, and one after the other.

    Peers' backward passes are followed by PyTorch's fused AdamW of a float32 table.
    """
    table, slots, weights = operands(size)
    pooled_gradient = torch.randn(size.tokens, EXPANSION, size.width, device="cuda", dtype=table.dtype)
    first, second = torch.zeros_like(table), torch.zeros(len(table), 1, device="cuda")
    placement, step = Placement(size.num_keys, EXPANSION), torch.tensor(1.0, device="cuda")

    def together() -> None:
        read = (pooled_gradient, table, first, second, slots, weights)
        ops.lookup_step(*read, placement=placement, step=step, **ADAM)

    leaf, leaf_weights = torch.nn.Parameter(table.clone()), weights.clone().requires_grad_()
    pooled = lookup(leaf, slots, leaf_weights, size.num_keys)

    def apart() -> None:
        gradient, _ = torch.autograd.grad(pooled, (leaf, leaf_weights), pooled_gradient, retain_graph=True)
        ops.row_adam(leaf.data, first, second, None, gradient, step=step, **ADAM)

    floor = (num_bytes(pooled_gradient, slots, weights, weights) + 4 * num_bytes(table)) / copy
    ours = {"ours": microseconds(together)}
    peers: dict[str, float | None] = {"apart": microseconds(apart)}
    for other in others:
        peers[f"{other.name}_adamw"] = None
        with left_out_if_broken(f"{other.name}'s backward pass, {size},"):
            backward = measure_backward(other, pooled_gradient, table, slots, weights, size.num_keys)
            peers[f"{other.name}_adamw"] = backward and backward + adamw_float32(table)
    return row(size, floor, ours, peers)


def row(size: Size, floor: float, ours: Mapping[str, float], peers: Mapping[str, float | None]) -> dict[str, Any]:
    """One line of the table; ratios are of the first of ours."""
    times = {"floor": floor, **ours, **peers}
    return (
        {"size": str(size)} | {f"{name}_us": time for name, time in times.items()} | ratios(ours["ours"], floor, peers)
    )


def main() -> None:
    """Measures, prints tables and keeps the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "--authors", "--memory-plus")
    arguments = parser.parse_args()
    others: list[LookupPeer] = []
    try:
        for peer, checkout in ((AuthorsLookup, arguments.authors), (MemoryPlusBag, arguments.memory_plus)):
            with left_out_if_broken(peer.name):
                if checkout:
                    others.append(peer(checkout, EXPANSION))
    except MissingPeer as error:
        parser.exit(2, f"{error}\n")
    copy = copy_speed()
    print(f"{torch.cuda.get_device_name()}: copies {copy / 1e6:.2f} TB/s read and written")
    tables: list[tuple[str, Sequence[Size], Callable[[Size, float], dict[str, Any]]]]
    if arguments.authors or arguments.memory_plus:
        tables = [
            ("lookup_peers", TARGETS, partial(forward_row, others=others)),
            ("lookup_backward_peers", TARGETS[1:2], partial(backward_row, others=others)),
            ("lookup_step_peers", TARGETS[1:2], partial(step_row, others=others)),
        ]
    else:
        tables = [
            ("lookup", FORWARD, forward_row),
            ("lookup_backward", BACKWARD, backward_row),
            ("row_adam", TARGETS[1:2], optimizer_row),
            ("lookup_step", BACKWARD, step_row),
        ]
    for name, sizes, measure in tables:
        rows = []
        for size in sizes:
            rows.append(measure(size, copy))
            kept = write(rows, name)
            torch.cuda.empty_cache()
        show(rows, title=name.replace("_", " "))
        print(f"kept in {kept}")


if __name__ == "__main__":
    main()
