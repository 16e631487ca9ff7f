"""Weighted pooling of table rows in plain PyTorch: bags over the table, one a (token, group, core).

Nothing of size tokens x slots x width is made: PyTorch's embedding-bag kernels read the rows and add them up. A table
row is seen as h rows of width D_v / h, so that a core is an index too.
Shapes: N tokens, K slots a token, h cores, E groups, R rows, D_v width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem.ops.lookup.permutation import physical_rows

_SUM = 0  # the embedding-bag kernels' number for mode="sum"


class Bags(NamedTuple):
    """Every read of the table, ordered by (token, core, group)."""

    indices: Tensor  # (N * h * K,) index into the table seen as (R * h, D_v / h)
    weights: Tensor  # (N * h * K,)
    offsets: Tensor  # (N * h * E,) where each bag begins
    order: Tensor  # (N, K) the slots of a token, sorted by group


def make_bags(slots: Tensor, weights: Tensor, num_keys: int, expansion: int, seed: int) -> Bags:
    """Sorts each token's slots by group and lays the bags out for every core."""
    num_tokens, num_cores, num_slots = weights.shape
    rows_NK, groups_NK = physical_rows(slots, num_keys, expansion, seed)
    groups_NK, order_NK = groups_NK.sort(dim=-1, stable=True)
    indices_NK = rows_NK.gather(-1, order_NK) * num_cores
    indices_NhK = indices_NK[:, None] + torch.arange(num_cores, device=slots.device)[None, :, None]
    weights_NhK = weights.gather(-1, order_NK[:, None].expand(-1, num_cores, -1))

    group_start_NE = torch.searchsorted(
        groups_NK, torch.arange(expansion, device=slots.device).expand(num_tokens, -1).contiguous()
    )
    first_read_Nh = torch.arange(num_tokens * num_cores, device=slots.device).view(num_tokens, num_cores) * num_slots
    offsets_NhE = first_read_Nh[:, :, None] + group_start_NE[:, None]
    return Bags(indices_NhK.reshape(-1), weights_NhK.reshape(-1), offsets_NhE.reshape(-1), order_NK)


def lookup(table: Tensor, slots: Tensor, weights: Tensor, num_keys: int, expansion: int, seed: int) -> Tensor:
    """See `ultramem.ops.lookup`."""
    num_tokens, num_cores, _ = weights.shape
    width = table.shape[1]
    bags = make_bags(slots, weights.to(table.dtype), num_keys, expansion, seed)
    pooled = F.embedding_bag(
        bags.indices,
        table.view(-1, width // num_cores),
        bags.offsets,
        mode="sum",
        per_sample_weights=bags.weights,
    )
    pooled_NhEd = pooled.view(num_tokens, num_cores, expansion, width // num_cores)
    return pooled_NhEd.transpose(1, 2).reshape(num_tokens, expansion, width)


def _spread(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int, expansion: int, seed: int
) -> tuple[Tensor, Bags, Tensor, Tensor]:
    """What both gradients share: one gradient a bag, the bags, the bag of every read, and the weights' gradient."""
    num_tokens, num_cores, num_slots = weights.shape
    chunk = table.shape[1] // num_cores
    bags = make_bags(slots, weights.to(table.dtype), num_keys, expansion, seed)
    grad_NEhd = grad_pooled.to(table.dtype).view(num_tokens, expansion, num_cores, chunk)
    grad_bags = grad_NEhd.transpose(1, 2).reshape(-1, chunk)
    # Bags may be empty, so several can begin at one read: the last of them owns it.
    reads = torch.arange(bags.indices.numel(), device=slots.device)
    bag_of_read = torch.searchsorted(bags.offsets, reads, right=True) - 1
    grad_reads = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_bags, table.view(-1, chunk), bags.indices, bags.offsets, bag_of_read, _SUM
    ).view(num_tokens, num_cores, num_slots)
    order_NhK = bags.order[:, None].expand(-1, num_cores, -1)
    grad_weights = grad_reads.new_empty(grad_reads.shape).scatter_(-1, order_NhK, grad_reads).to(weights.dtype)
    return grad_bags, bags, bag_of_read, grad_weights


def _sum_rows(grad_bags: Tensor, indices: Tensor, bag_of_read: Tensor, bags: Bags, num_rows: int) -> Tensor:
    """Adds ``weight * bag gradient`` of every read to its row, in the order of the reads."""
    bag_sizes = torch.diff(bags.offsets, append=bags.offsets.new_tensor([indices.numel()]))
    return torch.ops.aten._embedding_bag_dense_backward(
        grad_bags, indices, bag_of_read, bag_sizes, torch.empty_like(bag_sizes), num_rows, False, _SUM, bags.weights
    )


def lookup_backward(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int, expansion: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The dense gradient of the table ``(R, D_v)`` and that of the weights ``(N, h, K)``."""
    grad_bags, bags, bag_of_read, grad_weights = _spread(grad_pooled, table, slots, weights, num_keys, expansion, seed)
    num_rows = table.numel() // grad_bags.shape[1]
    grad_table = _sum_rows(grad_bags, bags.indices, bag_of_read, bags, num_rows).view_as(table)
    return grad_table, grad_weights


def lookup_backward_rows(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int, expansion: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The touched rows ``(U,)`` ascending, their gradients ``(U, D_v)``, and the gradient of the weights."""
    grad_bags, bags, bag_of_read, grad_weights = _spread(grad_pooled, table, slots, weights, num_keys, expansion, seed)
    num_cores = weights.shape[1]
    rows, compact = torch.unique(bags.indices // num_cores, return_inverse=True)
    compact_indices = compact * num_cores + bags.indices % num_cores
    grad_rows = _sum_rows(grad_bags, compact_indices, bag_of_read, bags, rows.numel() * num_cores)
    return rows, grad_rows.view(rows.numel(), table.shape[1]), grad_weights
