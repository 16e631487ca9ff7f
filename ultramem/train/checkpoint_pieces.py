"""Large tensors are stored in pieces, so that no reader ever needs more memory than one of them takes."""

import io
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

PIECE_BYTES = 1 << 28


class PiecewiseSavePlanner(DefaultSavePlanner):
    """Plans a save as ever, then cuts what a rank holds of a tensor along its first dimension.

    torch.distributed.checkpoint reads a stored item whole, even for a few rows of it. Whoever puts a table together
    again, or spreads it over another number of processes, would otherwise hold what one process held of it.

    Example:
        >>> from torch.distributed.checkpoint import save
        >>> written = save({"x": torch.ones(9, 4)}, checkpoint_id="x", planner=PiecewiseSavePlanner(), no_dist=True)
        >>> len(written.state_dict_metadata["x"].chunks)
        1
    """

    def create_local_plan(self) -> SavePlan:
        """Cut the items of this rank."""
        plan = super().create_local_plan()
        self._pieces: dict[MetadataIndex, tuple[WriteItem, int, int]] = {}
        self.plan = replace(plan, items=[piece for item in plan.items for piece in self._cut(item)])
        return self.plan

    def _cut(self, item: WriteItem) -> Iterator[WriteItem]:
        data = item.tensor_data
        num_bytes = data.properties.dtype.itemsize * math.prod(data.chunk.sizes) if data else 0
        if data is None or num_bytes <= PIECE_BYTES:
            yield item
            return
        chunk = data.chunk
        length = max(1, PIECE_BYTES * chunk.sizes[0] // num_bytes)
        for start in range(0, chunk.sizes[0], length):
            offsets = torch.Size((chunk.offsets[0] + start, *chunk.offsets[1:]))
            sizes = torch.Size((min(length, chunk.sizes[0] - start), *chunk.sizes[1:]))
            piece = replace(
                item,
                index=MetadataIndex(item.index.fqn, offsets),
                type=WriteItemType.SHARD,
                tensor_data=replace(data, chunk=ChunkStorageMetadata(offsets, sizes)),
            )
            self._pieces[piece.index] = item, start, sizes[0]
            yield piece

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """Return a piece's rows, or what is stored whole."""
        if write_item.index not in self._pieces:
            return super().resolve_data(write_item)
        item, start, length = self._pieces[write_item.index]
        whole = super().resolve_data(item)
        assert isinstance(whole, Tensor)
        return whole.narrow(0, start, length)
