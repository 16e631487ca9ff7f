"""A table that is to be divided: no process ever holds it whole, and yet it begins as if one had."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ultramem.layers.tables import Table

DRAWN_AT_ONCE = 1 << 22
"""Numbers of an `UndrawnTable` that are in memory beside a part of it (up to twice as many at its end)."""


class UndrawnTable(Table):
    """A table without memory, to be divided: its parts are drawn as they are asked for, the same as a `Table`'s.

    What is drawn after it is the same too: where a `Table` draws its rows, it passes over their random numbers.

    Args:
        num_rows: R.
        width: D_v.
        std: of the initial values.
        sparse: as of `Table`.

    Example:
        >>> UndrawnTable(10**4, 64, std=0.1).narrow(dim=1, start=8, length=2).shape
        torch.Size([10000, 2])
    """

    def __init__(self, num_rows: int, width: int, *, std: float, sparse: bool = False):
        super().__init__(num_rows, width, std=std, sparse=sparse, device="meta")

    def reset_parameters(self) -> None:
        """Takes the place of the rows in the random numbers."""
        self._random_state = torch.get_rng_state()
        for _ in self._blocks(torch.default_generator):
            pass

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        """Draws rows (dim 0) or columns (dim 1) from ``start`` on."""
        generator = torch.Generator()
        generator.set_state(self._random_state)
        shape = list(self.weight.shape)
        shape[dim] = length
        part = torch.empty(shape, dtype=self.weight.dtype)
        for row, block in self._blocks(generator):
            if dim == 1:
                part[row : row + len(block)] = block[:, start : start + length]
                continue
            first, end = max(row, start), min(row + len(block), start + length)
            if first < end:
                part[first - start : end - start] = block[first - row : end - row]
        return part

    def _blocks(self, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
        """Rows in their order, with the number of the first: as if all were drawn by one call."""
        num_rows, width = self.weight.shape
        # PyTorch draws 16 normal numbers at a time, and the last 16 of a tensor apart: blocks must not show.
        step = max(16, DRAWN_AT_ONCE // width // 16 * 16)
        starts = range(0, max(1, num_rows - step + 1), step)
        for start in starts:
            end = num_rows if start == starts[-1] else start + step
            block = torch.empty(end - start, width, dtype=self.weight.dtype)
            yield start, nn.init.normal_(block, std=self.std, generator=generator)

    def _apply(self, fn, recurse=True):
        return self  # `Module.to` finds nothing to move
