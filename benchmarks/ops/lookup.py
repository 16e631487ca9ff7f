"""The lookup on a GPU, forward, backward and with the row optimizer, against its floor and PyTorch's own operations.

python -m benchmarks.ops.lookup
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from benchmarks.record import keep
from ultramem import ops

SLOTS, EXPANSION, CORES = 84, 4, 2
BYTES = 2  # bfloat16
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
BACKWARD = [Size(2048, 256, 8192), Size(2048, 256, 32768), Size(2048, 256, 32768, "zipf"), Size(8192, 192, 32768)]


def milliseconds(function: Callable[[], object]) -> float:
    """Median over cold-cache runs."""
    return triton.testing.do_bench(function, warmup=20, rep=100, return_mode="median")


def milliseconds_of_graph(functions: list[Callable[[], object]]) -> float:
    """One of many short calls, replayed in a CUDA graph so that no launch gap counts; their inputs exceed the cache."""
    for function in functions[:2]:
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for function in functions:
            function()
    return triton.testing.do_bench(graph.replay, warmup=20, rep=100, return_mode="median") / len(functions)


def copy_bandwidth() -> float:
    """Bytes a millisecond that a device copy reads and writes: what every floor below is measured in."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / milliseconds(lambda: target.copy_(source))


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


def forward_row(size: Size, bandwidth: float) -> dict[str, object]:
    """Milliseconds of a forward pass."""
    table, slots, weights = operands(size)
    moved = size.tokens * (SLOTS * (size.width * BYTES + 8 + 4 * CORES) + EXPANSION * size.width * BYTES)
    if size.tokens <= 1024:
        drawn = [operands(size)[1:] if i == 0 else (draw_slots(size), weights) for i in range(24)]

        def measure(function: Callable[..., Tensor]) -> float:
            return milliseconds_of_graph([lambda d=d: function(table, *d, size.num_keys) for d in drawn])  # type: ignore[misc]
    else:

        def measure(function: Callable[..., Tensor]) -> float:
            return milliseconds(lambda: function(table, slots, weights, size.num_keys))

    with torch.no_grad():
        times = {
            "ours_ms": measure(lookup),
            "embedding_bag_ms": measure(bag),
            "gather_einsum_ms": measure(gather_and_einsum),
        }
    return row("lookup forward", size, moved / bandwidth, times)


def backward_row(size: Size, bandwidth: float) -> dict[str, object]:
    """Milliseconds of a backward pass, dense gradient (ours also as touched rows)."""
    table, slots, weights = operands(size)
    table.requires_grad_()
    weights.requires_grad_()
    touched = ops.physical_rows(slots, size.num_keys, EXPANSION, 0)[0].unique().numel()
    grad_reads = size.tokens * EXPANSION * size.width * BYTES
    moved = grad_reads + touched * size.width * BYTES + table.numel() * BYTES + slots.numel() * (8 + 8 * CORES)

    def measure(function: Callable[..., Tensor], **settings: bool) -> float:
        pooled = function(table, slots, weights, size.num_keys, **settings)
        gradient = torch.randn_like(pooled)
        return milliseconds(lambda: torch.autograd.grad(pooled, (table, weights), gradient, retain_graph=True))

    times = {
        "ours_ms": measure(lookup),
        "ours_rows_ms": measure(lookup, sparse=True),
        "embedding_bag_ms": measure(bag),
        "gather_einsum_ms": measure(gather_and_einsum),
    }
    return row("lookup backward", size, moved / bandwidth, times)


def optimizer_row(size: Size, bandwidth: float) -> dict[str, object]:
    """Milliseconds of an optimizer step of the whole table: full state, one second moment a row, PyTorch's fused."""
    table, _, _ = operands(size)
    gradient, step = torch.randn_like(table), torch.tensor(1.0, device="cuda")
    moment, square = torch.zeros_like(table), torch.zeros(table.shape, device="cuda")

    def measure(exp_avg_sq: Tensor) -> float:
        return milliseconds(lambda: ops.row_adam(table, moment, exp_avg_sq, None, gradient, step=step, **ADAM))

    times = {"ours_full_ms": measure(square), "ours_ms": measure(torch.zeros(len(table), 1, device="cuda"))}
    del square
    single = torch.nn.Parameter(table.float())
    single.grad = gradient.float()
    adam = torch.optim.AdamW([single], fused=True)
    times["adamw_float32_ms"] = milliseconds(adam.step)
    return row("table optimizer", size, table.numel() * 5 * BYTES / bandwidth, times)


def row(what: str, size: Size, floor: float, times: dict[str, float]) -> dict[str, object]:
    """One line of the table: times, and the ratio of the floor and of each peer to ours."""
    ratios = {name.replace("_ms", "_ratio"): round(time / times["ours_ms"], 2) for name, time in times.items()}
    ratios.pop("ours_ratio")
    rounded = {name: round(time, 4) for name, time in times.items()}
    share = {"share_of_floor": round(floor / times["ours_ms"], 3)}
    return {"what": what, "size": str(size), "floor_ms": round(floor, 4)} | rounded | share | ratios


def main() -> None:
    """Measures, prints a line for every size and keeps the rows."""
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copies {bandwidth / 1e9:.2f} TB/s read and written")
    for benchmark, sizes, measure in (
        ("lookup_forward", FORWARD, forward_row),
        ("lookup_backward", BACKWARD, backward_row),
        ("row_adam", BACKWARD[1:2], optimizer_row),
    ):
        rows = []
        for size in sizes:
            rows.append(measure(size, bandwidth))
            print(
                "  ".join(
                    str(value) if key in ("what", "size") else f"{key} {value}" for key, value in rows[-1].items()
                )
            )
            torch.cuda.empty_cache()
        keep(benchmark, rows)


if __name__ == "__main__":
    main()
