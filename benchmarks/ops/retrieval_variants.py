# ruff: noqa: B023, E501, E731
"""Candidates of every retrieval kernel, checked against the reference and timed in one run. Temporary."""

import traceback
from collections.abc import Callable
from contextlib import contextmanager

import torch
import triton

from benchmarks.ops.filter_variants import descriptor_filter
from benchmarks.ops.retrieval import Case, Ceilings, make, measure
from ultramem.ops.rescore import kernels as rescore_kernels
from ultramem.ops.rescore import reference as rescore_reference
from ultramem.ops.select_keys import backward_kernels as select_backward
from ultramem.ops.select_keys import kernels as select
from ultramem.ops.select_keys import reference


@contextmanager
def patched(module, name, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def check() -> list[str]:
    """Everything in use, on integer inputs, whose scores are exact and full of ties; memory poisoned."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    failures = []
    sizes = [(300, 1, 2, 3584, 2, 256, 32), (70, 2, 2, 1001, 4, 40, 42), (513, 1, 1, 1138, 1, 192, 128)]
    sizes += [(1, 1, 1, 1, 1, 1, 1), (3, 2, 2, 9, 1, 5, 9), (1000, 1, 1, 777, 3, 72, 64), (64, 1, 2, 3584, 2, 512, 32)]
    for tokens, sets, heads, n, ranks, width, k in sizes:
        for dtype in (torch.bfloat16, torch.float16, torch.float32) if ranks > 2 else (torch.bfloat16,):
            size = f"{(tokens, sets, heads, n, ranks, width, k)} {dtype}"
            try:
                query = torch.randint(-2, 3, (tokens, sets, 2, ranks, width), device="cuda").to(dtype)
                keys = torch.randint(-2, 3, (heads, 2, n, ranks, width), device="cuda").to(dtype)
                filters = 2.0 ** torch.randint(-2, 2, (heads, 2, ranks), device="cuda")
                filters *= torch.randint(-1, 2, (heads, 2, ranks), device="cuda")
                ours, theirs = (f.select_keys(query, keys, filters, k) for f in (select, reference))
                if not all(map(torch.equal, ours, theirs)):
                    failures.append(f"select_keys {size}: {(ours[1] != theirs[1]).sum()} indices differ")
                again = select.select_keys(query, keys, filters, k)
                if not all(map(torch.equal, ours, again)):
                    failures.append(f"select_keys {size}: two runs differ")
                grad = torch.randint(-2, 3, theirs[0].shape, device="cuda").float()
                ours = select_backward.select_keys_backward(grad, theirs[1], query, keys)
                other = reference.select_keys_backward(grad, theirs[1], query, keys)
                for name, a, b in zip(("query", "keys"), ours, other, strict=True):
                    if not torch.equal(a, b):
                        failures.append(f"grad_{name} {size}: off by {(a.float() - b.float()).abs().max()}")
            except Exception as error:
                traceback.print_exc()
                failures.append(f"select_keys {size}: {type(error).__name__} {str(error)[-300:]}")
    for tokens, heads, c, ranks, num_cores, k in [
        (300, 2, 32, 2, 2, 32), (33, 2, 42, 2, 2, 42), (40, 1, 128, 3, 4, 256), (300, 1, 100, 2, 1, 7), (1, 1, 1, 1, 1, 1)
    ]:  # fmt: skip
        size = str((tokens, heads, c, ranks, num_cores, k))
        try:
            scores = torch.randint(-2, 3, (tokens, heads, 2, ranks, c), device="cuda").float()
            indices = torch.rand(tokens, heads, 2, 200, device="cuda").argsort(dim=-1)[..., :c].contiguous()
            cores = torch.randint(-2, 3, (heads, num_cores, ranks, ranks), device="cuda").float()
            ours = rescore_kernels.rescore(scores, indices, cores, 200, k)
            theirs = rescore_reference.rescore(scores, indices, cores, 200, k)
            if not all(map(torch.equal, ours, theirs)):
                failures.append(f"rescore {size}: {(ours[2] != theirs[2]).sum()} positions differ")
            grad = torch.randint(-2, 3, theirs[0].shape, device="cuda").float()
            ours = rescore_kernels.rescore_backward(grad, theirs[2], scores, cores)
            theirs = rescore_reference.rescore_backward(grad, theirs[2], scores, cores)
            if not all(map(torch.equal, ours, theirs)):
                failures.append(f"rescore_backward {size}")
        except Exception as error:
            traceback.print_exc()
            failures.append(f"rescore {size}: {type(error).__name__} {str(error)[-300:]}")
    torch.use_deterministic_algorithms(False)
    return failures


def dense_backward(grad_scores, indices, query, keys, chunk):
    """The scores' gradient spread over all keys, a chunk of tokens at a time, and two products."""
    heads, _, n, ranks, width = keys.shape
    keys_of_ranks = keys.permute(0, 1, 3, 2, 4).reshape(-1, n, width)
    grad_keys = torch.zeros(heads * 2 * ranks, n, width, device="cuda")
    grad_query = torch.empty_like(query)
    for start in range(0, len(query), chunk):
        part = slice(start, start + chunk)
        grad = grad_scores[part].permute(1, 2, 3, 0, 4).to(query.dtype)
        tokens = grad.shape[3]
        spread = grad.new_zeros(heads, 2, ranks, tokens, n)
        spread.scatter_(-1, indices[part].permute(1, 2, 0, 3)[:, :, None].expand_as(grad), grad)
        spread = spread.view(-1, tokens, n)
        products = torch.bmm(spread, keys_of_ranks).view(heads, 2, ranks, tokens, width).sum(dim=0)
        grad_query[part, 0] = products.permute(2, 0, 1, 3)
        query_of_ranks = query[part, 0].permute(1, 2, 0, 3).expand(heads, -1, -1, -1, -1).reshape(-1, tokens, width)
        grad_keys += torch.bmm(spread.mT, query_of_ranks, out_dtype=torch.float32)
    return grad_query, grad_keys


def run() -> list[dict]:
    failures = check()
    print(f"{len(failures)} failures")
    print("\n".join(failures))
    ceilings = Ceilings.measured()
    rows = []

    def time(step: str, variant: str, case: Case, function: Callable[[], object], floor: float = float("nan")) -> None:
        try:
            us = measure(function, 25)
        except Exception as error:
            print(f"{step} {variant}: {type(error).__name__} {str(error)[-400:]}")
            us = float("nan")
        rows.append(dict(size=case.name, tokens=case.tokens, step=step, variant=variant, us=us, floor_us=floor))

    def tile(tokens, keys, width, warps, stages):
        return dict(TOKENS=tokens, KEYS=keys, WIDTH=width, num_warps=warps, num_stages=stages)

    for case in (Case(4096), Case(4096, width=512), Case(64), Case(1)):
        query, keys, filters, cores = make(case)
        ones = torch.ones_like(filters)
        n, k, width = case.keys, case.top_k, case.width
        filter_scores, maxima = select._filter(query, keys, filters)
        scores, indices = select.select_keys(query, keys, filters, k)
        floor = ceilings.floor(2.0 * case.tokens * keys.numel(), (query.numel() + keys.numel()) * 2)
        flat_query = query.view(case.tokens, 2, -1).transpose(0, 1).repeat(case.heads, 1, 1)
        flat_keys = keys.view(case.heads * 2, n, -1)
        time("filter", "cublas bf16 out", case, lambda q=flat_query, x=flat_keys: torch.bmm(q, x.mT), floor)
        time(
            "filter", "cublas fp32 out", case,
            lambda q=flat_query, x=flat_keys: torch.bmm(q, x.mT, out_dtype=torch.float32), floor,
        )  # fmt: skip
        big = [
            (128, 256, 64, 8, 3),
            (128, 256, 64, 8, 4),
            (128, 128, 64, 8, 3),
            (128, 128, 64, 4, 3),
            (64, 256, 64, 4, 3),
        ]
        small = [(64, 64, 64, 4, 4), (64, 64, 128, 4, 3), (64, 32, 128, 4, 4), (64, 128, 64, 4, 4), (16, 64, 128, 4, 4),
                 (16, 32, 256, 4, 3), (16, 64, 256, 4, 2)]  # fmt: skip
        for shape in big if case.tokens > 256 else small:
            if shape[0] == 16 and case.tokens > 16:
                continue
            with patched(select, "_filter_tile", lambda *_, shape=shape: tile(*shape)):
                time("filter", f"pointers {shape}", case, lambda: select._filter(query, keys, filters), floor)
                time("filter", f"pointers {shape} rank 1", case,
                     lambda: select._filter(query.view(-1, 1, 2, 1, 2 * width),
                                            keys.view(case.heads, 2, n, 1, 2 * width), ones[..., :1].contiguous()),
                     floor)  # fmt: skip
        if case.tokens > 256:
            for persistent in (0, 1, 2):
                for shape in [(128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 64, 8, 4)]:
                    if (persistent and shape[1] == 256) or (persistent == 2 and shape[3] == 4):
                        continue
                    for bulk in (True, False):
                        variant = f"descriptors {shape} bulk {bulk} persistent {persistent}"
                        call = lambda s=shape, b=bulk, p=persistent: descriptor_filter(
                            query, keys, ones, tile=tile(*s), bulk_store=b, persistent=p
                        )  # fmt: skip
                        time("filter", variant, case, call, floor)
                        try:
                            expected = select._filter(query, keys, ones)
                            for name, a, b_ in zip(("scores", "maxima"), call(), expected, strict=True):
                                error = (a - b_).abs().max().item()
                                if not error < 1e-4:
                                    print(f"{variant}: {name} off by {error}")
                        except Exception as error:
                            print(f"{variant}: {type(error).__name__}")
        if width == 256:
            blocks = select._select_blocks
            for warps in (1, 2, 4):
                for block in (32, 64, 128):
                    changed = lambda *a, w=warps, b=block: blocks(*a) | dict(num_warps=w, WIDTH=b)
                    with patched(select, "_select_blocks", changed):
                        call = lambda: select._select(filter_scores, maxima, query, keys, filters, scores, indices)
                        time("select", f"{warps} warps, width {block}", case, call)
            for warps in (1, 2, 4):
                with patched(rescore_kernels, "_num_warps", lambda *_, w=warps: w):
                    time(
                        "rescore", f"{warps} warps", case, lambda: rescore_kernels.rescore(scores, indices, cores, n, k)
                    )
                    values, _, positions = rescore_kernels.rescore(scores, indices, cores, n, k)
                    time("rescore_backward", f"{warps} warps", case,
                         lambda: rescore_kernels.rescore_backward(values, positions, scores, cores))  # fmt: skip

    case = Case(32768)
    query, keys, filters, cores = make(case)
    floor = ceilings.floor(2.0 * case.tokens * keys.numel(), (query.numel() + keys.numel()) * 2)
    for exponent in (24, 25, 26, 28, 31):
        with patched(select, "WORKSPACE_BYTES", 2**exponent):
            time("select_keys", f"workspace 2^{exponent}", case,
                 lambda: select.select_keys(query, keys, filters, case.top_k), floor)  # fmt: skip
    scores, indices = select.select_keys(query, keys, filters, case.top_k)
    grad = torch.randn_like(scores)
    gathered = ceilings.floor(0, indices.numel() * case.ranks * case.width * 2)
    for choices, warps in [(8, 2), (16, 2), (8, 4), (16, 4), (32, 4), (16, 8), (32, 8)]:
        with patched(select_backward, "GATHER", dict(CHOICES=choices, num_warps=warps)):
            for name in ("_grad_query", "_grad_keys"):
                function = getattr(select_backward, name)
                time(
                    name,
                    f"{choices} rows, {warps} warps",
                    case,
                    lambda f=function: f(grad, indices, query, keys),
                    gathered,
                )
    numbers = torch.randint(0, 4 * case.keys, (indices.numel(),), device="cuda")
    for dtype in (torch.int16, torch.int32, torch.int64):
        time("sort", str(dtype), case, lambda d=dtype: numbers.to(d).sort(stable=True))
    for chunk in (512, 2048, 8192):
        time(
            "both gradients",
            f"dense, {chunk} tokens",
            case,
            lambda c=chunk: dense_backward(grad, indices, query, keys, c),
        )
    rows.sort(key=lambda row: (row["size"], row["tokens"], row["step"], row["us"]))
    for row in rows:
        row["us"] = round(row["us"], 1)
    print(torch.__version__, triton.__version__, torch.cuda.get_device_name(), ceilings)
    return rows
