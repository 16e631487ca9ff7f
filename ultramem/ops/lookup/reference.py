"""Weighted pooling of table rows in plain PyTorch: bags over the table, one a (token, group, core).

Nothing of size tokens x slots x width is made: PyTorch's embedding-bag kernels read the rows and add them up. A table
row is seen as h rows of width D_v / h, so that a core is an index too.
Shapes: N tokens, K slots a token, h cores, E groups, R rows, D_v width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ultramem.ops.lookup.permutation import Placement, physical_rows
from ultramem.ops.precision import accumulation_dtype

_SUM = 0  # the number of mode="sum" in the embedding bag's kernels


class Bags(NamedTuple):
    """Every read of the table, ordered by (token, core, group)."""

    indices: Tensor  # (N * h * K,) index into the table seen as (R * h, D_v / h)
    weights: Tensor  # (N * h * K,)
    offsets: Tensor  # (N * h * E,) where each bag begins
    order: Tensor  # (N, K) the slots of a token, sorted by group

    def readers(self) -> Tensor:
        """The bag of every read."""
        sizes = self.offsets.diff(append=self.offsets.new_tensor([self.indices.numel()]))
        return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)


def make_bags(num_rows: int, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int) -> Bags:
    """Sorts each token's slots by group and lays the bags out for every core."""
    num_tokens, num_cores, num_slots = weights.shape
    rows_NK, groups_NK = physical_rows(slots, *placement, num_rows)
    groups_NK, order_NK = (groups_NK % num_groups).sort(dim=-1, stable=True)
    indices_NK = rows_NK.gather(-1, order_NK) * num_cores
    indices_NhK = indices_NK[:, None] + torch.arange(num_cores, device=slots.device)[None, :, None]
    weights_NhK = weights.gather(-1, order_NK[:, None].expand(-1, num_cores, -1))

    group_start_NE = torch.searchsorted(
        groups_NK, torch.arange(num_groups, device=slots.device).expand(num_tokens, -1).contiguous()
    )
    first_read_Nh = torch.arange(num_tokens * num_cores, device=slots.device).view(num_tokens, num_cores) * num_slots
    offsets_NhE = first_read_Nh[:, :, None] + group_start_NE[:, None]
    return Bags(indices_NhK.reshape(-1), weights_NhK.reshape(-1), offsets_NhE.reshape(-1), order_NK)


def lookup(table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int) -> Tensor:
    """See `ultramem.ops.lookup`."""
    num_tokens, num_cores, _ = weights.shape
    num_rows, width = table.shape
    bags = make_bags(num_rows, slots, weights.to(table.dtype), placement, num_groups)
    pooled = F.embedding_bag(
        bags.indices,
        table.view(-1, width // num_cores),
        bags.offsets,
        mode="sum",
        per_sample_weights=bags.weights,
    )
    pooled_NhEd = pooled.view(num_tokens, num_cores, num_groups, width // num_cores)
    # Chunks of one number would flatten to a view, which is not the layout that the operation promises.
    return pooled_NhEd.transpose(1, 2).flatten(2).contiguous()


def lookup_backward(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int
) -> tuple[Tensor, Tensor]:
    """The dense gradient of the table ``(R, D_v)`` and that of the weights ``(N, h, K)``."""
    bags = make_bags(table.shape[0], slots, weights.to(table.dtype), placement, num_groups)
    grad_bags = _bag_gradients(grad_pooled, table, weights)
    return _sum_all_rows(grad_bags, bags, table), _weight_gradients(grad_bags, bags, table, weights)


def lookup_backward_rows(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The touched rows ``(U,)`` ascending, their gradients ``(U, D_v)``, and the gradient of the weights."""
    bags = make_bags(table.shape[0], slots, weights.to(table.dtype), placement, num_groups)
    grad_bags = _bag_gradients(grad_pooled, table, weights)
    return *_sum_touched_rows(grad_bags, bags, table), _weight_gradients(grad_bags, bags, table, weights)


def table_gradient(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int
) -> Tensor:
    """`lookup_backward` where the weights need no gradient."""
    bags = make_bags(table.shape[0], slots, weights.to(table.dtype), placement, num_groups)
    return _sum_all_rows(_bag_gradients(grad_pooled, table, weights), bags, table)


def row_gradients(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int
) -> tuple[Tensor, Tensor]:
    """`lookup_backward_rows` where the weights need no gradient."""
    bags = make_bags(table.shape[0], slots, weights.to(table.dtype), placement, num_groups)
    return _sum_touched_rows(_bag_gradients(grad_pooled, table, weights), bags, table)


def _sum_all_rows(grad_bags: Tensor, bags: Bags, table: Tensor) -> Tensor:
    """The gradient of every row ``(R, D_v)``."""
    order = bags.indices.argsort(stable=True)
    counts = bags.indices.bincount(minlength=table.numel() // grad_bags.shape[1])
    return _sum_reads(grad_bags, bags, order, counts.cumsum(0) - counts).view_as(table)


def _sum_touched_rows(grad_bags: Tensor, bags: Bags, table: Tensor) -> tuple[Tensor, Tensor]:
    """The touched rows ``(U,)`` ascending and their gradients ``(U, D_v)``."""
    order = bags.indices.argsort(stable=True)
    touched, counts = bags.indices[order].unique_consecutive(return_counts=True)
    grad_rows = _sum_reads(grad_bags, bags, order, counts.cumsum(0) - counts)
    # All chunks of a row are read together, so every h-th index begins a row.
    num_cores = table.shape[1] // grad_bags.shape[1]
    return touched[::num_cores] // num_cores, grad_rows.view(-1, table.shape[1])


def _bag_gradients(grad_pooled: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """The pooled gradient, one row a bag: ``(N, E, D_v)`` -> ``(N * h * E, D_v / h)``."""
    num_cores = weights.shape[1]
    grad_NEhd = grad_pooled.to(table.dtype).unflatten(-1, (num_cores, table.shape[1] // num_cores))
    return grad_NEhd.transpose(1, 2).flatten(0, 2).contiguous()


def _sum_reads(grad_bags: Tensor, bags: Bags, order: Tensor, first_reads: Tensor) -> Tensor:
    """The transpose of a bag is a bag: each row sums, over its reads, weight times the gradient of the reading bag."""
    return F.embedding_bag(
        bags.readers()[order], grad_bags, first_reads, mode="sum", per_sample_weights=bags.weights[order]
    )


def _weight_gradients(grad_bags: Tensor, bags: Bags, table: Tensor, weights: Tensor) -> Tensor:
    """The gradient of a bag times the row read, for every read: what autograd itself calls for an embedding bag."""
    dtype = accumulation_dtype(table.dtype)  # on a GPU it has no narrower kernel
    rows = table.view(-1, grad_bags.shape[1]).to(dtype)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_bags.to(dtype), rows, bags.indices, bags.offsets, bags.readers(), _SUM
    )
    order_NhK = bags.order[:, None].expand(weights.shape)
    return weights.new_empty(weights.shape).scatter_(-1, order_NhK, products.view(weights.shape).to(weights.dtype))
