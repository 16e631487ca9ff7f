"""A small table: every process has it whole, and only gradients travel."""

from torch import Tensor

from ultramem import ops
from ultramem.distributed.exchange import scale_gradient
from ultramem.distributed.sharded_table import ShardedTable


class ReplicatedTable(ShardedTable):
    """A table of which every process has all: its shard axis has size 1."""

    dim = 0

    def forward(self, slots: Tensor, values: Tensor, placement: ops.Placement, *, by_group: bool = True) -> Tensor:
        """As `Table.forward`, without a word to another process."""
        pooled = ops.lookup(
            self.part,
            slots.flatten(1),
            scale_gradient(values.transpose(1, 2).flatten(2), self.num_ranks),
            **placement._asdict(),
            by_group=by_group,
            sparse=self.gradient_is_sparse,
        )
        # Divided on the way in and multiplied on the way out: only the table's own gradient keeps the division.
        return scale_gradient(pooled, 1 / self.num_ranks)

    def dot(self, slots: Tensor, inputs: Tensor, placement: ops.Placement) -> Tensor:
        """As `Table.dot`, without a word to another process."""
        products = ops.gather_dot(
            self.part,
            slots.flatten(1),
            scale_gradient(inputs, self.num_ranks),
            **placement._asdict(),
            sparse=self.gradient_is_sparse,
        )
        return scale_gradient(products, 1 / self.num_ranks).view(slots.shape)
