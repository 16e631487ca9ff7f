"""Rows of other processes, fetched: each process gets every row that its tokens read once, and pools them itself.

The rows that came are a small table in their own right, so the ordinary operations run on it, with their kernels and
gradients. Shapes: N tokens, K slots a token, h cores, U different rows, D_v width of a row.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem import ops
from ultramem.distributed.exchange import exchange, scale_gradient
from ultramem.distributed.sharded_table import ShardedTable
from ultramem.ops.lookup.permutation import logical_slots


def lookup(table: ShardedTable, rows_NK: Tensor, groups_NK: Tensor, weights_NhK: Tensor, num_groups: int) -> Tensor:
    """Pool rows of a table that is divided by rows, by group and core -> ``(N, num_groups, D_v)``."""
    fetched, places_NK, num_keys = _small_table(table, rows_NK, num_groups)
    slots_NK = logical_slots(places_NK, groups_NK, num_keys, num_groups, seed=0)
    return ops.lookup(fetched, slots_NK, weights_NhK, num_keys=num_keys, expansion=num_groups)


def gather_dot(table: ShardedTable, rows_NK: Tensor, inputs: Tensor) -> Tensor:
    """Multiply rows of a table that is divided by rows with their token's input ``(N, D_v)`` -> ``(N, K)``."""
    fetched, places_NK, num_keys = _small_table(table, rows_NK, num_groups=1)
    return ops.gather_dot(fetched, places_NK, inputs, num_keys=num_keys)


def _small_table(table: ShardedTable, rows_NK: Tensor, num_groups: int) -> tuple[Tensor, Tensor, int]:
    """The different rows among those wanted, where each is in that table, and the table's logical keys a side."""
    wanted, places_NK = rows_NK.unique(return_inverse=True)
    fetched = _fetch(table, wanted)
    # As a square of keys, which the operations ask for; the rows beyond those that came are never read.
    num_keys = isqrt(num_groups) * _root(len(wanted))
    return F.pad(fetched, (0, 0, 0, num_keys**2 // num_groups - len(wanted))), places_NK, num_keys


def _fetch(table: ShardedTable, wanted: Tensor) -> Tensor:
    """Rows ``(U,)``, ascending, of the whole table -> ``(U, D_v)``."""
    ends = torch.tensor(table.sizes, device=wanted.device).cumsum(0)
    counts = torch.searchsorted(wanted, ends).diff(prepend=ends.new_zeros(1))
    ones = [1] * len(table.sizes)
    ask, give = torch.stack([counts, exchange(counts, ones, ones, table.axis)]).tolist()
    asked = exchange(wanted.to(_index_dtype(table.weight.shape[0])), ask, give, table.axis)
    rows = F.embedding(asked.long() - table.first, table.part, sparse=table.gradient_is_sparse)
    return exchange(scale_gradient(rows, 1 / table.num_ranks), give, ask, table.axis)


def _root(count: int) -> int:
    """A whole number whose square is at least ``count``, one of few: kernels are compiled for every number of keys."""
    root = isqrt(max(count, 1) - 1) + 1
    step = 1 << max(0, root.bit_length() - 5)  # at most an eighth more rows
    return -(-root // step) * step


def _index_dtype(num_rows: int) -> torch.dtype:
    return torch.int32 if num_rows < 2**31 else torch.int64
