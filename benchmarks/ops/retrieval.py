"""What retrieval costs on a GPU, step by step: ``python -m benchmarks.ops.retrieval``.

Times are medians of replays of a CUDA graph, so launches cost nothing and small inputs stay in the L2 cache. The
floor is the larger of the products at the speed of a large matrix product and the bytes at the speed of a device copy,
both measured in the same run.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from triton.testing import do_bench_cudagraph

from benchmarks import record
from ultramem import ops
from ultramem.ops.rescore import kernels as rescore_kernels
from ultramem.ops.select_keys import backward_kernels as select_backward
from ultramem.ops.select_keys import kernels as select


class Case(NamedTuple):
    """One size of the retrieval."""

    tokens: int
    heads: int = 2
    keys: int = 3584
    ranks: int = 2
    width: int = 256  # a rank
    top_k: int = 32
    cores: int = 2

    @property
    def name(self) -> str:
        """As in the table."""
        return f"H{self.heads} n{self.keys} r{self.ranks} d{self.width} m{self.top_k}"


CASES = [
    *(Case(tokens) for tokens in (1, 64, 512, 8192, 32768)),
    *(Case(tokens, width=512) for tokens in (64, 32768)),
    Case(32768, keys=2000, width=128),
    Case(32768, heads=1, keys=1138, width=96),
    Case(32768, heads=1, keys=2048, width=96, top_k=42),
]


class Inputs(NamedTuple):
    """Random bfloat16 inputs of a case."""

    query: Tensor
    keys: Tensor
    filters: Tensor
    cores: Tensor


def make(case: Case) -> Inputs:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device="cuda", generator=generator).to(dtype)

    scale = (case.width * case.ranks) ** -0.5
    return Inputs(
        normal(case.tokens, 1, 2, case.ranks, case.width),
        normal(case.heads, 2, case.keys, case.ranks, case.width) * scale,
        normal(case.heads, 2, case.ranks, dtype=torch.float32).abs(),
        normal(case.heads, case.cores, case.ranks, case.ranks, dtype=torch.float32).abs(),
    )


def plain(query: Tensor, keys: Tensor, filters: Tensor, cores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The composition that one would write: bfloat16 products, every rank's scores of all keys, three top-k."""
    scores = torch.einsum("nsrd,hsjrd->nhsrj", query[:, 0], keys)
    indices = (scores * filters[..., None].to(scores.dtype)).sum(dim=3).topk(k).indices
    scores = scores.gather(-1, indices[:, :, :, None].expand(-1, -1, -1, keys.shape[3], -1)).float()
    row, column = scores.unbind(dim=2)
    grids = torch.einsum("nhai,hcab,nhbj->nhcij", row, cores, column).flatten(3)
    positions = grids.sum(dim=2).topk(k).indices
    slots = indices[:, :, 0].gather(-1, positions // k) * keys.shape[2] + indices[:, :, 1].gather(-1, positions % k)
    return grids.gather(3, positions[:, :, None].expand(-1, -1, grids.shape[2], -1)), slots


def measure(function: Callable[[], object], milliseconds: int = 60) -> float:
    """Microseconds."""
    return do_bench_cudagraph(function, rep=milliseconds, return_mode="median") * 1e3


class Ceilings(NamedTuple):
    """What this GPU does at best."""

    flops: float
    bytes: float

    @classmethod
    def measured(cls) -> "Ceilings":
        """By a large matrix product and a large copy."""
        left, right = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16).unbind()
        source = torch.empty(2**30, device="cuda", dtype=torch.uint8).random_()
        target = torch.empty_like(source)
        return cls(
            2 * 8192**3 / measure(lambda: left @ right) * 1e6, 2 * 2**30 / measure(lambda: target.copy_(source)) * 1e6
        )

    def floor(self, flops: float, num_bytes: float) -> float:
        """Microseconds."""
        return max(flops / self.flops, num_bytes / self.bytes) * 1e6


def num_bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def steps(case: Case, ceilings: Ceilings, *, compiled: bool) -> list[dict]:
    query, keys, filters, cores = inputs = make(case)
    k = case.top_k
    products = 2.0 * case.tokens * keys.numel()

    def whole():
        scores, indices = ops.select_keys(query, keys, filters, k)
        return ops.rescore(scores, indices, cores, case.keys, k)

    scores, indices = select.select_keys(query, keys, filters, k)
    values, slots, positions = rescore_kernels.rescore(scores, indices, cores, case.keys, k)
    rescored = num_bytes(scores, indices, values, slots, positions)
    grad_scores, grad_values = torch.randn_like(scores), torch.randn_like(values)
    chosen_bytes = indices.numel() * case.ranks * case.width * 2
    small = case.tokens <= 8192
    limit = select.WORKSPACE_BYTES // (case.heads * 2 * case.keys * 4)
    part = query[:limit]
    filter_scores, maxima = select._filter(part, keys, filters)

    def one(step: str, function: Callable[[], object], floor: float) -> dict:
        time = measure(function)
        return dict(size=case.name, tokens=case.tokens, step=step, us=time, floor_us=floor, ratio=time / floor)

    key_floor = ceilings.floor(products, num_bytes(query, keys, scores, indices))
    rows = [
        one("retrieval", whole, key_floor),
        one("select_keys", lambda: select.select_keys(query, keys, filters, k), key_floor),
        one(
            f"  filter, {len(part)} tokens",
            lambda: select._filter(part, keys, filters),
            ceilings.floor(products * len(part) / case.tokens, num_bytes(part, keys, filter_scores, maxima)),
        ),
        one(
            f"  select, {len(part)} tokens",
            lambda: select._select(filter_scores, maxima, part, keys, filters, scores[:limit], indices[:limit]),
            ceilings.floor(0, num_bytes(maxima, scores[:limit], indices[:limit]) + indices[:limit].numel() * 32),
        ),
        one(
            "rescore",
            lambda: rescore_kernels.rescore(scores, indices, cores, case.keys, k),
            ceilings.floor(0, rescored),
        ),
        one(
            "grad_query",
            lambda: select_backward._grad_query(grad_scores, indices, query, keys),
            ceilings.floor(0, chosen_bytes),
        ),
        one(
            "grad_keys",
            lambda: select_backward._grad_keys(grad_scores, indices, query, keys),
            ceilings.floor(0, chosen_bytes),
        ),
        one(
            "rescore_backward",
            lambda: rescore_kernels.rescore_backward(grad_values, positions, scores, cores),
            ceilings.floor(0, 2 * num_bytes(scores) + num_bytes(grad_values, positions)),
        ),
        one("torch, eager", lambda: plain(*inputs, k), key_floor),
        one(
            "torch.topk, one side",
            lambda: filter_scores[:, :, 0].topk(k),
            ceilings.floor(0, num_bytes(filter_scores[:, :, 0])),
        ),
    ]
    if compiled and small:
        function = torch.compile(plain, dynamic=False)
        rows.append(one("torch, compiled", lambda: function(*inputs, k), key_floor))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true", help="also torch.compile the plain composition (slow start)")
    parser.add_argument("--variants", action="store_true", help="check and time the candidates instead")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the CSV")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.variants:
        from benchmarks.ops import retrieval_variants

        rows, name = retrieval_variants.run(), "retrieval_variants"
    else:
        ceilings = Ceilings.measured()
        print(f"{ceilings.flops / 1e12:.0f} TFLOP/s, {ceilings.bytes / 1e12:.2f} TB/s")
        rows, name = [], "retrieval"
        for case in CASES:
            rows += steps(case, ceilings, compiled=arguments.compiled)
            torch.cuda.empty_cache()
    record.show(rows)
    print(record.write(rows, name, arguments.out))


if __name__ == "__main__":
    main()
