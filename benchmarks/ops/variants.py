"""Variants of the lookup's kernels that may be faster, against what is used: ``python -m benchmarks.ops.variants``.

- The backward walk over some columns at a time. The pooled gradient of all columns (67 MB for 32768 tokens, 4 groups
  and 256 columns) does not stay in the L2 cache, a quarter of it may. A table ``(R, D_v)`` is one of
  ``(P R, D_v / P)``, whose rows are read in P passes, so the used kernels walk it as they are.
- The forward pass of few tokens of wide rows: products of 128 columns, as for many tokens, instead of sums of 32.

Times are microseconds; every variant must give what is used: the table's gradient bit for bit, pooled rows and the
weights' gradient, whose terms are added in another order, up to rounding.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor

from benchmarks.ops.lookup import BACKWARD, CORES, EXPANSION, SLOTS, Size, draw_slots, operands
from benchmarks.ops.timing import microseconds, microseconds_in_graph
from benchmarks.record import show, write
from ultramem.ops.lookup import backward_kernels, kernels
from ultramem.ops.lookup.permutation import Placement

Gradients = tuple[Tensor, Tensor]


def in_passes(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, passes: int
) -> Gradients:
    """`backward_kernels.lookup_backward` in passes, a multiple of the cores, over the columns."""
    _, num_cores, num_slots = weights.shape
    num_groups, passes_a_core = grad_pooled.shape[1], passes // num_cores
    rows, bags, places = backward_kernels.sort_reads(slots, weights, len(table), placement, num_groups)
    narrow_table, narrow_pooled = (tensor.view(-1, table.shape[1] // passes) for tensor in (table, grad_pooled))
    touched = torch.zeros(len(narrow_table), dtype=torch.bool, device=table.device)
    grad_table = torch.empty_like(narrow_table)
    grad_weights = torch.empty(passes_a_core, *weights.shape, dtype=weights.dtype, device=weights.device)
    for number in range(passes):
        core, part = divmod(number, passes_a_core)
        narrow_rows = torch.where(rows < 0, rows, rows * passes + number)
        reads = torch.stack([narrow_rows, bags * passes + number, places + core * num_slots])
        backward_kernels.sum_rows(
            narrow_pooled,
            narrow_table,
            weights.view(-1, 1, num_slots),
            reads,
            (touched, grad_table),
            backward_kernels._into_place,
            grad_weights=grad_weights[part],
        )
    columns = triton.next_power_of_2(narrow_table.shape[1])
    block = max(1, 4096 // columns)
    backward_kernels._zero_kernel[(triton.cdiv(len(narrow_table), block),)](
        touched, grad_table, len(narrow_table), WIDTH=narrow_table.shape[1], ROWS=block, COLUMNS=columns
    )
    return grad_table.view_as(table), grad_weights.sum(dim=0)


def backward_row(size: Size) -> dict[str, Any]:
    """All gradients as they are computed now, and in passes, with other numbers of reads ahead."""
    table, slots, weights = operands(size)
    gradient = torch.randn(size.tokens, EXPANSION, size.width, device="cuda", dtype=table.dtype)
    given = gradient, table, slots, weights, Placement(size.num_keys, EXPANSION)
    used = backward_kernels.lookup_backward(*given, EXPANSION)
    times = {"used_us": microseconds(lambda: backward_kernels.lookup_backward(*given, EXPANSION))}
    for passes in (CORES, 2 * CORES):
        for ahead in (8, 16, 32):
            with patch.object(backward_kernels, "READS_A_STEP", ahead):
                check(used, in_passes(*given, passes))
                times[f"{passes}_passes_{ahead}_ahead_us"] = microseconds(lambda: in_passes(*given, passes))  # noqa: B023
    return {"size": str(size)} | times


def check(used: Gradients, other: Gradients) -> None:
    """The same table gradient; weights' gradients as near as sums of float32 in two orders are."""
    assert torch.equal(used[0], other[0])
    torch.testing.assert_close(used[1], other[1], rtol=1e-4, atol=1e-4 * used[1].abs().max().item())


def forward_row(tokens: int) -> dict[str, Any]:
    """A lookup of rows of 1024 columns with both kernels."""
    size = Size(3578, 1024, tokens)
    table, slots, weights = operands(size)
    drawn = [slots, *(draw_slots(size) for _ in range(7))]

    def all_lookups() -> list[Tensor]:
        return [kernels.lookup(table, each, weights, Placement(size.num_keys, EXPANSION), EXPANSION) for each in drawn]

    def timed(few_tokens: int) -> tuple[float, Tensor]:
        with patch.object(kernels, "FEW_TOKENS", few_tokens):
            return microseconds_in_graph(all_lookups, len(drawn)), all_lookups()[0]

    sums, products = timed(tokens + 1), timed(tokens)
    torch.testing.assert_close(sums[1], products[1])
    return {"tokens": tokens, "slots": SLOTS, "sums_us": sums[0], "products_us": products[0]}


def main() -> None:
    """Measures, prints tables and keeps the rows."""
    tables: list[tuple[str, list[Callable[[], dict[str, Any]]]]] = [
        ("lookup_backward_variants", [lambda size=size: backward_row(size) for size in BACKWARD[:3]]),
        ("lookup_variants", [lambda tokens=tokens: forward_row(tokens) for tokens in (16, 64, 128, 256)]),
    ]
    for name, measurements in tables:
        rows = []
        for measure in measurements:
            rows.append(measure())
            torch.cuda.empty_cache()
        show(rows, title=name.replace("_", " "))
        print(f"kept in {write(rows, name)}")


if __name__ == "__main__":
    main()
