"""Rows of other processes, pooled where they are: slots and scores go to the owners, and sums of rows come back.

What a token reads of one group at one owner is a bag: it gives one sum. For products with the token's input a bag is
all that the token reads at one owner, which gets the input once and answers with a number a slot. Hits are as uneven
as they are: nothing is padded on the way. Shapes: N tokens, K slots a token, h cores, M reads and B bags that an owner
is asked for, L reads of the longest of these, D_v width of a row.
"""

from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem import ops
from ultramem.distributed.exchange import Exchange, exchange, scale_gradient
from ultramem.distributed.sharded_table import ShardedTable
from ultramem.layers.memory import Arriving

LINE_STEP = 4
"""Kernels are compiled for every length of a line: the longest bag, which changes from step to step, is rounded up."""


def lookup(table: ShardedTable, rows_NK: Tensor, groups_NK: Tensor, weights_NhK: Tensor, num_groups: int) -> Arriving:
    """Pool rows of a table that is divided by rows, by group and core -> ``(N, num_groups, D_v)`` on their way."""
    num_tokens, num_cores, _ = weights_NhK.shape
    tokens = torch.arange(num_tokens, device=rows_NK.device)
    num_bags = num_tokens * num_groups
    asked = _ask(table, rows_NK, tokens[:, None] * num_groups + groups_NK, num_bags)

    weights = weights_NhK.transpose(1, 2).flatten(0, 1).index_select(0, asked.order)
    weights_Mh = exchange(weights, asked.reads, asked.reads_of_others, table.axis)
    weights_BLh = weights_Mh.new_zeros(asked.slots_BL.numel(), num_cores).index_copy(0, asked.places_M, weights_Mh)
    weights_BLh = weights_BLh.view(*asked.slots_BL.shape, num_cores)
    sums = ops.lookup(
        table.part,
        asked.slots_BL,
        scale_gradient(weights_BLh.transpose(1, 2), table.num_ranks),
        num_keys=isqrt(len(table.part)),
        sparse=table.gradient_is_sparse,
    )
    # Divided on the way in and multiplied on the way out: only the table's own gradient keeps the division.
    sums = scale_gradient(sums.squeeze(1), 1 / table.num_ranks)
    sums_way = Exchange(asked.bags_of_others, asked.bags, table.axis)
    # In the order of the bags: several owners have a sum for one.
    bags, order = asked.bag_numbers.sort(stable=True)
    first_sums = torch.searchsorted(bags, torch.arange(num_bags, device=bags.device))

    def finish(pieces: Tensor) -> Tensor:
        pooled = F.embedding_bag(order, sums_way.wait(pieces), first_sums, mode="sum")
        return pooled.view(num_tokens, num_groups, -1)

    return Arriving(sums_way.start(sums), finish)


def gather_dot(table: ShardedTable, rows_NK: Tensor, inputs: Tensor) -> Tensor:
    """Multiply rows of a table that is divided by rows with their token's input ``(N, D_v)`` -> ``(N, K)``."""
    tokens_NK = torch.arange(len(inputs), device=rows_NK.device)[:, None].expand_as(rows_NK)
    asked = _ask(table, rows_NK, tokens_NK, len(inputs))
    vectors = exchange(F.embedding(asked.bag_numbers, inputs), asked.bags, asked.bags_of_others, table.axis)
    products_BL = ops.gather_dot(
        table.part,
        asked.slots_BL,
        scale_gradient(vectors, table.num_ranks),
        num_keys=isqrt(len(table.part)),
        sparse=table.gradient_is_sparse,
    )
    products = scale_gradient(products_BL.flatten().index_select(0, asked.places_M), 1 / table.num_ranks)
    products = exchange(products, asked.reads_of_others, asked.reads, table.axis)
    return products.index_select(0, asked.order.argsort()).view(rows_NK.shape)


class _Asked(NamedTuple):
    """What a process asks of the owners, and what it is asked as one of them."""

    order: Tensor  # (N * K,) which read comes when: by owner, then by bag
    bag_numbers: Tensor  # the bag that each sum which comes back belongs to
    reads: list[int]  # how many it asks of each owner
    bags: list[int]
    reads_of_others: list[int]  # how many each process asks of it
    bags_of_others: list[int]
    slots_BL: Tensor  # what it is asked for, a bag a line: in a table without groups slots are rows
    places_M: Tensor  # of the reads in these lines, which are as long as the longest, to the next `LINE_STEP`


def _ask(table: ShardedTable, rows_NK: Tensor, bags_NK: Tensor, num_bags: int) -> _Asked:
    """Tell the owners which of their rows make a bag.

    Args:
        table: divided by rows.
        rows_NK: of the whole table.
        bags_NK: in ``[0, num_bags)``; reads of one number at one owner are a bag.
    """
    size, num_shards = table.sizes[0], len(table.sizes)
    places, order = (rows_NK // size * num_bags + bags_NK).flatten().sort(stable=True)
    bags, lengths = places.unique_consecutive(return_counts=True)
    ends = torch.arange(1, num_shards + 1, device=places.device) * num_bags
    ends = torch.stack([torch.searchsorted(places, ends), torch.searchsorted(bags, ends)])
    counts = ends.diff(dim=1, prepend=ends.new_zeros(2, 1))
    ones = [1] * num_shards
    of_others = exchange(counts.T, ones, ones, table.axis).T
    (reads, bag_counts), (reads_of_others, bags_of_others) = torch.stack([counts, of_others]).tolist()

    dtype = torch.int32 if size < 2**31 else torch.int64
    rows = (rows_NK.flatten()[order] % size).to(dtype)
    rows_M = exchange(rows, reads, reads_of_others, table.axis)
    lengths_B = exchange(lengths.to(dtype), bag_counts, bags_of_others, table.axis)
    longest = int(lengths_B.max()) if len(lengths_B) else 0
    longest = -(-longest // LINE_STEP) * LINE_STEP
    # Reads by their places: a mask would be counted, and the host would wait for the count, in the backward pass again.
    ends_B = lengths_B.cumsum(0)
    lines = torch.arange(len(lengths_B), device=places.device) * longest - (ends_B - lengths_B)
    places_M = torch.arange(len(rows_M), device=places.device)
    places_M = places_M + lines.repeat_interleave(lengths_B, output_size=len(rows_M))
    slots_BL = order.new_zeros(len(lengths_B) * longest).index_copy(0, places_M, rows_M.long())
    slots_BL = slots_BL.view(len(lengths_B), longest)
    # Beyond a bag's reads its first row stands, which the bag touches anyway.
    inside = torch.arange(longest, device=places.device) < lengths_B[:, None]
    slots_BL = torch.where(inside, slots_BL, slots_BL[:, :1])
    return _Asked(order, bags % num_bags, reads, bag_counts, reads_of_others, bags_of_others, slots_BL, places_M)
