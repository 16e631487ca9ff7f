"""A table by rows: each process fetches every row that its tokens read once, and pools them itself.

The rows that came are a small table in their own right, so the ordinary lookup runs on it, with its kernels and its
gradients. To pool at the owner instead, and send sums back, would save only where several slots of one token and group
lie on the same process: with few processes, where columns cost less than either (docs/parallelism.md).
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem import ops
from ultramem.distributed.exchange import exchange, scale_gradient
from ultramem.distributed.sharded_table import ShardedTable
from ultramem.ops.lookup.permutation import logical_slots, physical_rows


class RowTable(ShardedTable):
    """A table of which every process has some rows."""

    dim = 0

    def forward(
        self,
        slots: Tensor,
        values: Tensor,
        *,
        num_keys: int,
        expansion: int,
        seed: int,
        first_row: int = 0,
        by_group: bool = True,
    ) -> Tensor:
        """As `Table.forward`; processes may bring different numbers of tokens."""
        fetched, slots_NK, num_keys = self._fetch_read(slots.flatten(1), num_keys, expansion, seed, first_row)
        return ops.lookup(
            fetched,
            slots_NK,
            values.transpose(1, 2).flatten(2),
            num_keys=num_keys,
            expansion=expansion,
            seed=seed,
            by_group=by_group,
        )

    def dot(
        self, slots: Tensor, inputs: Tensor, *, num_keys: int, expansion: int, seed: int, first_row: int = 0
    ) -> Tensor:
        """As `Table.dot`; processes may bring different numbers of tokens."""
        fetched, slots_NK, num_keys = self._fetch_read(slots.flatten(1), num_keys, expansion, seed, first_row)
        products = ops.gather_dot(fetched, slots_NK, inputs, num_keys=num_keys, expansion=expansion, seed=seed)
        return products.view(slots.shape)

    def _fetch_read(
        self, slots_NK: Tensor, num_keys: int, expansion: int, seed: int, first_row: int
    ) -> tuple[Tensor, Tensor, int]:
        """The rows that slots read, the same slots in a table of those alone, and its logical keys a side."""
        rows_NK, groups_NK = physical_rows(slots_NK, num_keys, expansion, seed, first_row, self.weight.shape[0])
        wanted, places_NK = rows_NK.unique(return_inverse=True)
        fetched = self._fetch(wanted)
        # As a square of keys, which the operations ask for; the rows beyond those that came are never read.
        num_keys = isqrt(expansion) * _root(len(wanted))
        fetched = F.pad(fetched, (0, 0, 0, num_keys**2 // expansion - len(wanted)))
        return fetched, logical_slots(places_NK, groups_NK, num_keys, expansion, seed), num_keys

    def _fetch(self, wanted: Tensor) -> Tensor:
        """Rows ``(U,)``, ascending, of the whole table -> ``(U, D_v)``."""
        ends = torch.tensor(self.sizes, device=wanted.device).cumsum(0)
        counts = torch.searchsorted(wanted, ends).diff(prepend=ends.new_zeros(1))
        ones = [1] * len(self.sizes)
        ask, give = torch.stack([counts, exchange(counts, ones, ones, self.axis)]).tolist()
        asked = exchange(wanted.to(_index_dtype(self.weight.shape[0])), ask, give, self.axis)
        rows = F.embedding(asked.long() - self.first, self.part, sparse=self.gradient_is_sparse)
        return exchange(scale_gradient(rows, 1 / self.num_ranks), give, ask, self.axis)


def _root(count: int) -> int:
    """The smallest whole number whose square is at least ``count``, which is at least 1."""
    return isqrt(max(count, 1) - 1) + 1


def _index_dtype(num_rows: int) -> torch.dtype:
    return torch.int32 if num_rows < 2**31 else torch.int64
