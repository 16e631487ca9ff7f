"""The gradient of a table that several processes hold: the touched rows go round where they are few, else all rows."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ultramem.distributed.exchange import Gathering


def rows_are_cheaper(touched: int, num_rows: int, row_bytes: int, num_replicas: int) -> bool:
    """Whether to gather touched rows, at most ``touched`` of each process, takes fewer bytes than a dense all-reduce.

    Example:
        >>> rows_are_cheaper(touched=10, num_rows=1000, row_bytes=512, num_replicas=8)
        True
    """
    gathered = (num_replicas - 1) * touched * (row_bytes + 8)
    reduced = 2 * (num_replicas - 1) * num_rows * row_bytes // num_replicas
    return gathered < reduced


def sum_over_replicas(gradient: Tensor, axis: DeviceMesh, *, sparse: bool) -> Tensor:
    """Sum a gradient over the processes of an axis, to the same bits on all of them.

    Args:
        gradient: ``(R, D_v)``, sparse, its rows those that this process touched.
        axis: a mesh of one dimension.
        sparse: return the rows that any process touched, as a coalesced sparse tensor; else a dense tensor.
    """
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()
    group = axis.get_group()
    most = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group)
    touched = int(most)
    num_rows, width = gradient.shape
    if rows_are_cheaper(touched, num_rows, width * values.itemsize, axis.size()):
        missing = touched - len(rows)  # collectives want one size of all: row -1 is none
        all_rows = Gathering(torch.cat([rows, rows.new_full((missing,), -1)]), axis)
        all_values = Gathering(torch.cat([values, values.new_zeros(missing, values.shape[1])]), axis)
        everyones = all_rows.wait()
        there = everyones >= 0
        total = _sparse(everyones[there], all_values.wait()[there], gradient.shape).coalesce()
        return total if sparse else total.to_dense()
    total = gradient.to_dense()
    dist.all_reduce(total, group=group)
    if not sparse:
        return total
    is_touched = torch.zeros(num_rows, dtype=torch.uint8, device=rows.device)
    is_touched[rows] = 1
    dist.all_reduce(is_touched, dist.ReduceOp.MAX, group)
    rows = is_touched.nonzero().flatten()
    return _sparse(rows, total[rows], gradient.shape, is_coalesced=True)


def _sparse(rows: Tensor, values: Tensor, shape: torch.Size, is_coalesced: bool = False) -> Tensor:
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=is_coalesced, check_invariants=False)
