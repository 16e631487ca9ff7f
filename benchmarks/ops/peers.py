"""Peers' published kernels, called where the user's checkouts of them lie: none of their code is in this project.

The UltraMem papers' authors published CUDA kernels, built at the first use, into PyTorch's folder of the user's
cache, which needs nvcc and ninja. Memory Layers at Scale published an embedding bag in Triton.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import cpp_extension

from ultramem import ops

Gradients = tuple[Tensor, Tensor]
"""Of the table and of the weights."""


class MissingPeer(Exception):
    """A folder that is no checkout of the peer, or a machine that cannot build it."""


class Disagreement(Exception):
    """A peer computes something else than ours on the same inputs."""


@contextmanager
def left_out_if_broken(name: str) -> Iterator[None]:
    """Others' code may fail in any way: that is said, and whatever else there is to measure is measured.

    Raises:
        MissingPeer: it is not there.
        Disagreement: its result is not ours, which may be our mistake.
    """
    try:
        yield
    except (MissingPeer, Disagreement):
        raise
    except Exception as error:
        print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)


class LookupPeer(Protocol):
    """A lookup of rows of ``(R, D_v)`` by slots ``(N, K)`` with weights ``(N, h, K)``."""

    name: str

    def can_take(self, width: int, cores: int) -> bool:
        """Whether there is a kernel for rows of this width."""

    def inputs(self, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int) -> tuple[Tensor, ...]:
        """What its kernel takes, the table first; not timed."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """The pooled rows."""

    def backward(self, gradient: Tensor, *inputs: Tensor) -> Callable[[], Gradients]:
        """What computes all gradients, given that of the pooled rows."""

    def ours(self, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int) -> Tensor:
        """Our lookup of the same reads, with weights of the precision that the peer takes."""


def _file(checkout: Path, name: str, flag: str, what: str) -> Path:
    path = checkout / name
    if not path.is_file():
        raise MissingPeer(f"{flag} {checkout}: there is no {name} in it; give a checkout of {what}")
    return path


def _extension(checkout: Path, name: str) -> Any:
    """One of the authors' CUDA extensions, built for this GPU."""
    what = "the UltraMem papers' released code"
    sources = [_file(checkout, f"fuse_ops/{name}.{kind}", "--authors", what) for kind in ("cpp", "cu")]
    if cpp_extension.CUDA_HOME is None or not cpp_extension.is_ninja_available():
        missing = "ninja" if cpp_extension.CUDA_HOME else "nvcc (CUDA_HOME, or nvcc on the PATH)"
        raise MissingPeer(f"--authors {checkout}: its CUDA kernels are built at the first use, which needs {missing}")
    flags = ["-O3", "--use_fast_math"]
    return cpp_extension.load(
        f"authors_{name}", [str(path.resolve()) for path in sources], extra_cflags=["-O3"], extra_cuda_cflags=flags
    )


class AuthorsLookup:
    """The UltraMem papers' lookup: groups and cores as ours, bfloat16 weights, a float32 gradient of the table.

    Its backward adds to a gradient by atomics; the zeroes before it are part of the time.
    """

    name = "authors"

    def __init__(self, checkout: Path, expansion: int) -> None:
        self.expansion = expansion
        self.kernels = _extension(checkout, "fused_lookup")

    def can_take(self, width: int, cores: int) -> bool:
        """It loads eight columns of a core at a time."""
        return width // cores % 8 == 0

    def inputs(self, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int) -> tuple[Tensor, ...]:
        """Places count through all rows of a group, then through the next group's; weights go core by core."""
        rows, groups = ops.physical_rows(slots, num_keys, self.expansion, 0)
        places = (groups * len(table) + rows).int()
        return table, places, weights.transpose(0, 1).to(table.dtype).contiguous()

    def _layout(self, table: Tensor) -> tuple[int, int, int, int, int, bool]:
        # Rows of the table and of the layer, the first one, groups, and no padding.
        return len(table), len(table), 0, self.expansion, 0, False

    def forward(self, *inputs: Tensor) -> Tensor:
        """``(N, E, D_v)``."""
        table, places, weights = inputs
        return self.kernels.forward(places, table, weights, *self._layout(table)).unflatten(1, (self.expansion, -1))

    def backward(self, gradient: Tensor, *inputs: Tensor) -> Callable[[], Gradients]:
        """The gradient of the weights as ``(N, h, K)``."""
        table, places, weights = inputs
        flat, total = gradient.flatten(1), torch.empty(table.shape, device=table.device)

        def run() -> Gradients:
            total.zero_()
            grad_weights = self.kernels.backward(places, table, weights, flat, total, *self._layout(table))
            return total, grad_weights.transpose(0, 1)

        return run

    def ours(self, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int) -> Tensor:
        """Groups and cores are the same."""
        rounded = weights.to(table.dtype).float()
        return ops.lookup(table, slots, rounded, num_keys=num_keys, expansion=self.expansion)


class MemoryPlusBag:
    """The embedding bag of Memory Layers at Scale, which knows neither groups nor cores: less work than ours."""

    name = "memory_plus"

    def __init__(self, checkout: Path, expansion: int) -> None:
        self.expansion = expansion
        name = "lingua/product_key/xformer_embeddingbag.py"
        path = _file(checkout, name, "--memory-plus", "Memory Layers at Scale")
        self.bag: Callable[[Tensor, Tensor, Tensor], Tensor] = _module(path).xformers_embedding_bag

    def can_take(self, width: int, cores: int) -> bool:
        """Its programs load whole rows."""
        return width & (width - 1) == 0

    def inputs(self, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int) -> tuple[Tensor, ...]:
        """The first core's weights."""
        return table, slots // self.expansion, weights[:, 0].to(table.dtype).contiguous()

    def forward(self, *inputs: Tensor) -> Tensor:
        """``(N, 1, D_v)``."""
        table, rows, weights = inputs
        return self.bag(rows, table, weights)[:, None]

    def backward(self, gradient: Tensor, *inputs: Tensor) -> Callable[[], Gradients]:
        """The gradient of the weights as ``(N, 1, K)``."""
        table, rows, weights = (tensor.detach() for tensor in inputs)
        leaves = table.requires_grad_(), weights.requires_grad_()
        pooled = self.bag(rows, *leaves)
        one_group = gradient[:, 0].contiguous()

        def run() -> Gradients:
            grad_table, grad_weights = torch.autograd.grad(pooled, leaves, one_group, retain_graph=True)
            return grad_table, grad_weights[:, None]

        return run

    def ours(self, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int) -> Tensor:
        """One group and one core: slots are rows."""
        rounded = weights[:, :1].to(table.dtype).float()
        rows = slots // self.expansion
        return ops.lookup(table, rows, rounded, num_keys=int(len(table) ** 0.5))


class AuthorsRetrieval:
    """The UltraMem papers' selection: r = 2, m of 32, 64 or 128, at most two cores; bfloat16 scores, not sorted.

    Its second step knows one head, so that heads are further tokens to it and all have the first one's core; a launch
    of it takes fewer than 65536 tokens.
    """

    LAUNCH = 2**15

    def __init__(self, checkout: Path) -> None:
        self.kernels = _extension(checkout, "fused_topk")

    def product(self, query: Tensor, keys: Tensor) -> Callable[[], Tensor]:
        """The matrix product of all scores, of which `scores` is what the kernels take."""
        left = query[:, 0].permute(1, 2, 0, 3).flatten(0, 1).contiguous()
        right = keys.permute(1, 3, 4, 0, 2).flatten(3).flatten(0, 1).contiguous()
        return lambda: left @ right

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """``(2, N, H, n, r)``."""
        return torch.einsum("nsrd,hsjrd->snhjr", query[:, 0], keys).contiguous()

    def select(self, scores: Tensor, filters: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Candidates' scores ``(2, N, H, m, r)`` and keys ``(2, N, H, m)``; filters ``(H, 2, r)``."""
        return self.kernels.fused_einsum_topk_step1(scores, filters.transpose(0, 1).contiguous(), top_k)

    def parts(self, candidates: Tensor) -> list[Tensor]:
        """Candidates' scores as `rescore` takes them: heads as tokens, a launch's tokens each; not timed."""
        one_head = candidates.flatten(1, 2)[:, :, None]
        return [part.contiguous() for part in one_head.split(self.LAUNCH, dim=1)]

    def rescore(self, parts: list[Tensor], cores: Tensor, top_k: int) -> list[Tensor]:
        """Positions ``(tokens, 1, m)`` of every part in the candidates' grid under the first head's cores."""
        first = cores[0][:, None].contiguous()
        return [self.kernels.fused_einsum_topk_step2(part, first, top_k)[2] for part in parts]

    def recall(self, keys: Tensor, positions: list[Tensor], slots: Tensor, num_keys: int) -> float:
        """The share of our slots ``(N, H, m)`` of the first head that it chose too."""
        row, column = keys[:, :, 0].long()
        best, top_k = torch.cat(positions).view_as(slots)[:, 0].long(), slots.shape[-1]
        chosen = row.gather(-1, best // top_k) * num_keys + column.gather(-1, best % top_k)
        return (slots[:, 0, :, None] == chosen[:, None]).any(dim=-1).float().mean().item()


def _module(path: Path) -> ModuleType:
    """A Python file of a checkout, without the package around it."""
    spec = importlib.util.spec_from_file_location(f"peers_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_agreement(name: str, theirs: Tensor, ours: Tensor) -> None:
    """Both sum in float32 and round to bfloat16 at most once: they differ by units in the last place."""
    largest = max(part.abs().max().float().item() for part in ours.split(2**18))
    allowed = 2 * torch.finfo(torch.bfloat16).eps * largest
    pairs = zip(theirs.split(2**18), ours.split(2**18), strict=True)
    error = max((a.float() - b.float()).abs().max().item() for a, b in pairs)
    if not error <= allowed:  # nor NaN
        raise Disagreement(f"{name} is off ours by {error:.3g}, where rounding explains {allowed:.3g}")


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """`--authors` and `--memory-plus`, or some of them."""
    helps = {
        "--authors": "a checkout of the UltraMem papers' released code, whose CUDA kernels join (needs nvcc and ninja)",
        "--memory-plus": "a checkout of Memory Layers at Scale, whose Triton bag joins",
    }
    for name in names:
        parser.add_argument(name, type=Path, metavar="PATH", help=helps[name])
