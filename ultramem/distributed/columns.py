"""A table by columns: every process pools all tokens' slots over its slice of each row, then slices change places.

Shapes: P processes, N tokens of each, K slots a token, h cores, E groups, D_v width of a row.
"""

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from ultramem import ops
from ultramem.distributed.exchange import Exchange, Gathering, exchange, scale_gradient
from ultramem.distributed.sharded_table import ShardedTable
from ultramem.layers.memory import Arriving, arrived


class Slice(NamedTuple):
    """How a slice of columns lies in the cores of a table."""

    cores: list[int]  # those that its columns belong to: only their weights are needed
    chunks: list[int]  # the slice in equal chunks, none of which crosses a core's border: which of `cores` each is


def slice_cores(first: int, size: int, width: int, num_cores: int) -> Slice:
    """Find the cores of the columns from ``first`` on.

    Example:
        >>> slice_cores(first=0, size=6, width=12, num_cores=3)
        Slice(cores=[0, 1], chunks=[0, 0, 1])
    """
    core_width = width // num_cores
    borders = [border - first for border in range(0, width, core_width) if first < border < first + size]
    chunk = gcd(size, *borders)
    of_chunks = [(first + start) // core_width for start in range(0, size, chunk)]
    cores = list(dict.fromkeys(of_chunks))
    return Slice(cores, [cores.index(core) for core in of_chunks])


class ColumnTable(ShardedTable):
    """A table of which every process has some columns of all rows."""

    dim = 1

    def forward(self, slots: Tensor, values: Tensor, placement: ops.Placement, *, by_group: bool = True) -> Tensor:
        """As `Table.forward`; every process brings as many tokens."""
        return arrived(self.start(slots, values, placement, by_group=by_group))

    def start(self, slots: Tensor, values: Tensor, placement: ops.Placement, *, by_group: bool = True) -> Arriving:
        """As `Table.start`: the pooled slices are on their way."""
        slots_NK, weights_NhK = slots.flatten(1), values.transpose(1, 2).flatten(2).to(self.part.dtype)
        num_tokens, num_cores, num_slots = weights_NhK.shape
        slices = self._slices(num_cores)
        mine = slices[self.axis.get_local_rank()]

        gathering = Gathering(slots_NK.to(_index_dtype(placement.num_keys)), self.axis)
        needed = torch.cat([weights_NhK[:, part.cores].flatten() for part in slices])
        send = [num_tokens * len(part.cores) * num_slots for part in slices]
        receive = [num_tokens * len(mine.cores) * num_slots] * len(slices)
        weights = exchange(needed, send, receive, self.axis).view(-1, len(mine.cores), num_slots)

        pooled = ops.lookup(
            self.part,
            gathering.wait().long(),
            scale_gradient(weights, self.num_ranks)[:, mine.chunks],
            **placement._asdict(),
            by_group=by_group,
            sparse=self.gradient_is_sparse,
        )
        # Divided on the way in and multiplied on the way out: only the table's own gradient keeps the division.
        pooled = scale_gradient(pooled, 1 / self.num_ranks)
        numbers = [num_tokens * pooled.shape[1] * size for size in self.sizes]
        own = [numbers[self.axis.get_local_rank()]] * len(numbers)
        slices_way, shape = Exchange(own, numbers, self.axis), (num_tokens, pooled.shape[1], -1)

        def finish(pieces: Tensor) -> Tensor:
            parts = slices_way.wait(pieces).split(numbers)
            return torch.cat([part.view(shape) for part in parts], dim=-1)

        return Arriving(slices_way.start(pooled.flatten()), finish)

    def dot(self, slots: Tensor, inputs: Tensor, placement: ops.Placement) -> Tensor:
        """As `Table.dot`; every process brings as many tokens, and gets the sum of what all columns give."""
        slots_NK, num_tokens, num_shards = slots.flatten(1), len(inputs), len(self.sizes)
        gathering = Gathering(slots_NK.to(_index_dtype(placement.num_keys)), self.axis)
        needed = torch.cat([columns.flatten() for columns in inputs.split(self.sizes, dim=1)])
        mine = self.part.shape[1]
        send = [num_tokens * size for size in self.sizes]
        vectors = exchange(needed, send, [num_tokens * mine] * num_shards, self.axis).view(-1, mine)

        products = ops.gather_dot(
            self.part,
            gathering.wait().long(),
            scale_gradient(vectors, self.num_ranks),
            **placement._asdict(),
            sparse=self.gradient_is_sparse,
        )
        counts = [num_tokens] * num_shards
        parts = exchange(scale_gradient(products, 1 / self.num_ranks), counts, counts, self.axis)
        return parts.view(num_shards, *slots.shape).sum(dim=0)

    def _slices(self, num_cores: int) -> list[Slice]:
        width = self.weight.shape[1]
        if width % num_cores:
            raise ValueError(f"table width {width} does not divide into {num_cores} cores")
        starts = [sum(self.sizes[:shard]) for shard in range(len(self.sizes))]
        return [slice_cores(start, size, width, num_cores) for start, size in zip(starts, self.sizes, strict=True)]


def _index_dtype(num_keys: int) -> torch.dtype:
    return torch.int32 if num_keys**2 < 2**31 else torch.int64
