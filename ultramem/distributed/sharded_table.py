"""One process's part of a table: what it holds, and where its gradient comes together.

In a ``state_dict`` and in an optimizer a table is what it was, one parameter "weight" ``(R, D_v)``: a ``DTensor`` over
``Mesh.tables`` with the placements ``(Replicate(), Shard(0))`` by rows and ``(Replicate(), Shard(1))`` by columns. A
table that every process has whole is ``(Replicate(), Shard(0))`` too, over a shard axis of size one.
`ultramem.optim.RowAdamW` makes its moments likewise. A shard is a `torch.chunk`: the last one may be smaller.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from ultramem import ops
from ultramem.distributed.replica_gradients import sum_over_replicas
from ultramem.layers.tables import Table


def shard_sizes(length: int, num_shards: int) -> list[int]:
    """Lengths of the parts into which ``torch.chunk`` and DTensors divide; the last ones may be empty.

    Example:
        >>> shard_sizes(10, 4)
        [3, 3, 3, 1]
    """
    size = -(-length // num_shards)
    return [max(0, min(size, length - shard * size)) for shard in range(num_shards)]


class ShardedTable(Table):
    """This process's part of a table.

    The gradient of a step is the sum over all its reads, wherever they were, divided by the number of processes: the
    loss is the mean over the processes, and the trunk's gradients are means too. It gathers here, micro-batch by
    micro-batch, and reaches ``weight.grad`` by `finish_gradient`.

    Args:
        table: the whole table, the same on all processes, drawn or undrawn; it is not used any more.
        mesh: `Mesh.tables`.
    """

    dim: int

    def __init__(self, table: Table, mesh: DeviceMesh):
        nn.Module.__init__(self)  # a Table's constructor would draw rows
        self.std, self.sparse = table.std, table.sparse
        self.replicas, self.axis, self.num_ranks = mesh["replicate"], mesh["shard"], mesh.size()
        self.sizes = shard_sizes(table.weight.shape[self.dim], self.axis.size())
        if min(self.sizes) == 0:
            what = "rows", "columns"
            raise ValueError(
                f"a table {tuple(table.weight.shape)} cannot be divided by {what[self.dim]} among {self.axis.size()} "
                f"processes: some would get none; use fewer (parallel.table_shards), or {what[1 - self.dim]}"
            )
        part = table.narrow(self.dim, self.first, self.sizes[self.axis.get_local_rank()]).to(mesh.device_type)
        placements, whole = [Replicate(), Shard(self.dim)], table.weight
        weight = DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
        self.weight = nn.Parameter(weight, requires_grad=whole.requires_grad)
        self._part = _leaf(self.weight)

    @property
    def part(self) -> Tensor:
        """This process's rows or columns: a leaf of autograd over the memory of ``weight``.

        A leaf of its own, because a DTensor cannot add up sparse gradients.
        """
        if self._part.data_ptr() != _local(self.weight).data_ptr():  # the module was moved
            self._part = _leaf(self.weight)
        return self._part

    @property
    def first(self) -> int:
        """Where in the table this part begins."""
        return sum(self.sizes[: self.axis.get_local_rank()])

    @property
    def gradient_is_sparse(self) -> bool:
        """Whether the part's gradient comes as touched rows: replicas may exchange these alone."""
        return self.sparse or self.replicas.size() > 1

    @torch.no_grad()
    def finish_gradient(self) -> None:
        """Sum what gathered since the last step over the replicas: it is ``weight.grad`` then.

        To be called once a step, after the last backward pass, on all processes.
        """
        gradient, self.part.grad = self.part.grad, None
        if gradient is None:
            return
        if self.replicas.size() > 1:
            gradient = sum_over_replicas(gradient, self.replicas, sparse=self.sparse)
        gradient = gradient.coalesce() if gradient.is_sparse else gradient
        assert self.weight.grad is None, "zero_grad() before the next step"
        # Not DTensor.from_local: it cannot take a sparse tensor.
        self.weight.grad = DTensor(gradient, self.weight._spec, requires_grad=False)  # type: ignore[attr-defined]

    @abstractmethod
    def forward(self, slots: Tensor, values: Tensor, placement: ops.Placement, *, by_group: bool = True) -> Tensor:
        """As `Table.forward`, of this process's tokens. All processes of the axis call it together."""

    @abstractmethod
    def dot(self, slots: Tensor, inputs: Tensor, placement: ops.Placement) -> Tensor:
        """As `Table.dot`, of this process's tokens. All processes of the axis call it together."""


@torch.no_grad()
def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _leaf(weight: Tensor) -> Tensor:
    return _local(weight).detach().requires_grad_(weight.requires_grad)
