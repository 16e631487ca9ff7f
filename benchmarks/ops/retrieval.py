"""What retrieval costs on a GPU, whole and step by step: ``python -m benchmarks.ops.retrieval``.

The floor is the larger of the products at the speed of a large matrix product and the bytes at the speed of a device
copy, both measured in the same run. Times are microseconds. ``--authors PATH`` puts the UltraMem papers' own kernels,
and the share of the exact slots that they find, beside ours, at the sizes of the targets.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.ops.peers import AuthorsRetrieval, MissingPeer, add_flags, left_out_if_broken
from benchmarks.ops.timing import copy_speed, microseconds, microseconds_in_graph, num_bytes, product_speed, ratios
from benchmarks.record import show, write
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

    def __str__(self) -> str:
        return f"H{self.heads} n{self.keys} r{self.ranks} d{self.width} m{self.top_k}, {self.tokens} tokens"


TARGETS = [Case(tokens, width=512) for tokens in (64, 32768)]
CASES = [
    *(Case(tokens) for tokens in (1, 64, 512, 8192, 32768)),
    *TARGETS,
    Case(32768, keys=2000, width=128),
    Case(32768, heads=1, keys=1138, width=96),
    Case(32768, heads=1, keys=2048, width=96, top_k=42),
]
COMPILED = (Case(64), Case(8192))  # every compilation of the peer takes seconds
BACKWARD = [Case(8192), Case(32768), Case(32768, heads=1, keys=1138, width=96)]


class Inputs(NamedTuple):
    """Random bfloat16 inputs of a case."""

    query: Tensor
    keys: Tensor
    filters: Tensor
    cores: Tensor


def make(case: Case) -> Inputs:
    """The inputs; scores have unit variance."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    scale = (case.width * case.ranks) ** -0.5
    return Inputs(
        normal(case.tokens, 1, 2, case.ranks, case.width).bfloat16(),
        (normal(case.heads, 2, case.keys, case.ranks, case.width) * scale).bfloat16(),
        normal(case.heads, 2, case.ranks).abs(),
        normal(case.heads, case.cores, case.ranks, case.ranks).abs(),
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


def forward_row(case: Case, product: float, copy: float, authors: AuthorsRetrieval | None = None) -> dict[str, Any]:
    """Retrieval, its three kernels for as many tokens as they take at once, and what others do."""
    query, keys, filters, cores = inputs = make(case)
    k = case.top_k

    def ours() -> object:
        scores, indices = ops.select_keys(query, keys, filters, k)
        return ops.rescore(scores, indices, cores, case.keys, k)

    scores, indices = ops.select_keys(query, keys, filters, k)
    part = query[:8192]
    filter_scores, maxima = select._filter(part, keys, filters)
    selected = scores[:8192], indices[:8192]
    floor = max(2.0 * case.tokens * keys.numel() / product, num_bytes(query, keys, scores, indices) / copy)
    times: dict[str, float | None] = {
        "floor_us": floor,
        "ours_us": (time := microseconds_in_graph(ours)),
        "filter_of_8192_us": microseconds_in_graph(lambda: select._filter(part, keys, filters)),
        "select_of_8192_us": microseconds_in_graph(
            lambda: select._select(filter_scores, maxima, part, keys, filters, *selected)
        ),
        "rescore_us": microseconds_in_graph(lambda: rescore_kernels.rescore(scores, indices, cores, case.keys, k)),
    }
    peers: dict[str, float | None] = {
        "topk_of_one_side": microseconds_in_graph(lambda: filter_scores[:, :, 0].topk(k)) * case.tokens / len(part),
        "eager": microseconds_in_graph(lambda: plain(*inputs, k)),
        "compiled": None,
    }
    if case in COMPILED:
        function = torch.compile(plain, dynamic=False)
        function(*inputs, k)
        peers["compiled"] = microseconds_in_graph(lambda: function(*inputs, k))
    theirs: dict[str, float | None] = {}
    if authors is not None:
        theirs = dict.fromkeys(("authors_product_us", "authors_select_us", "authors_rescore_us", "authors_recall"))
        with left_out_if_broken("authors"):
            theirs = authors_steps(authors, case, inputs)
        steps = list(theirs.values())[:3]
        peers["authors"] = sum(steps) if None not in steps else None
    times |= {f"{name}_us": peer for name, peer in peers.items()}
    return {"size": str(case)} | times | theirs | ratios(time, floor, peers)


def authors_steps(authors: AuthorsRetrieval, case: Case, inputs: Inputs) -> dict[str, float | None]:
    """Their product of all scores, their two kernels, and the share of the exact slots that they find."""
    query, keys, filters, cores = inputs
    all_scores = authors.scores(query, keys)
    candidates, chosen_keys = authors.select(all_scores, filters, case.top_k)
    parts = authors.parts(candidates)
    positions = authors.rescore(parts, cores, case.top_k)
    scores, indices = ops.select_keys(query, keys, filters, case.top_k)
    _, slots = ops.rescore(scores, indices, cores, case.keys, case.top_k)
    return {
        "authors_product_us": microseconds_in_graph(authors.product(query, keys)),
        "authors_select_us": microseconds_in_graph(lambda: authors.select(all_scores, filters, case.top_k)),
        "authors_rescore_us": microseconds_in_graph(lambda: authors.rescore(parts, cores, case.top_k)),
        "authors_recall": authors.recall(chosen_keys, positions, slots, case.keys),
    }


def backward_row(case: Case, product: float, copy: float) -> dict[str, Any]:
    """Gradients of query, keys and cores, ours kernel by kernel, against the composition's autograd."""
    inputs = make(case)
    query, keys, filters, cores = inputs
    scores, indices = ops.select_keys(query, keys, filters, case.top_k)
    values, _, positions = rescore_kernels.rescore(scores, indices, cores, case.keys, case.top_k)
    grad_values, grad_scores = torch.randn_like(values), torch.randn_like(scores)
    parts: dict[str, Callable[[], object]] = {
        "grad_query_us": lambda: select_backward._grad_query(grad_scores, indices, query, keys),
        "grad_keys_us": lambda: select_backward._grad_keys(grad_scores, indices, query, keys),
        "rescore_backward_us": lambda: rescore_kernels.rescore_backward(grad_values, positions, scores, cores),
    }
    times = {name: microseconds_in_graph(part) for name, part in parts.items()}
    total = sum(times.values())
    floor = num_bytes(query, query, keys, keys, scores, scores, indices, grad_values, positions) / copy

    leaves = [tensor.requires_grad_() for tensor in (query, keys, cores)]
    peer_values, _ = plain(query, keys, filters, cores, case.top_k)
    autograd = microseconds(lambda: torch.autograd.grad(peer_values, leaves, grad_values, retain_graph=True))
    sums = {"floor_us": floor, "ours_us": total, "eager_us": autograd}
    return {"size": str(case)} | sums | times | ratios(total, floor, {"eager": autograd})


def main() -> None:
    """Measures, prints tables and keeps the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "--authors")
    arguments = parser.parse_args()
    authors = None
    try:
        with left_out_if_broken("authors"):
            authors = AuthorsRetrieval(arguments.authors) if arguments.authors else None
    except MissingPeer as error:
        parser.exit(2, f"{error}\n")
    product, copy = product_speed(), copy_speed()
    print(f"{torch.cuda.get_device_name()}: products {product / 1e6:.0f} TFLOP/s, copies {copy / 1e6:.2f} TB/s")
    tables: list[tuple[str, Sequence[Case], Callable[[Case, float, float], dict[str, Any]]]]
    if arguments.authors:
        tables = [("retrieval_peers", TARGETS, partial(forward_row, authors=authors))]
    else:
        tables = [("retrieval", CASES, forward_row), ("retrieval_backward", BACKWARD, backward_row)]
    for name, cases, measure in tables:
        rows = []
        for case in cases:
            rows.append(measure(case, product, copy))
            kept = write(rows, name)
            torch.cuda.empty_cache()
        show(rows, title=name.replace("_", " "))
        print(f"kept in {kept}")


if __name__ == "__main__":
    main()
