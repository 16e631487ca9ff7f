"""A table by rows: rows are pooled at their owners or fetched from them, whichever sends fewer bytes."""

from types import ModuleType

from torch import Tensor

from ultramem.distributed import fetched_rows, pooled_rows
from ultramem.distributed.communication import Read, pools_at_owners
from ultramem.distributed.sharded_table import ShardedTable
from ultramem.layers.memory import Arriving, arrived
from ultramem.ops.lookup.permutation import Placement, physical_rows


class RowTable(ShardedTable):
    """A table of which every process has some rows."""

    dim = 0

    def forward(self, slots: Tensor, values: Tensor, placement: Placement, *, by_group: bool = True) -> Tensor:
        """As `Table.forward`; every process brings as many tokens."""
        return arrived(self.start(slots, values, placement, by_group=by_group))

    def start(self, slots: Tensor, values: Tensor, placement: Placement, *, by_group: bool = True) -> Tensor | Arriving:
        """As `Table.start`: sums may be on their way, fetched rows are pooled."""
        num_groups = placement.expansion if by_group else 1
        weights_NhK = values.transpose(1, 2).flatten(2).to(self.part.dtype)
        rows_NK, groups_NK = physical_rows(slots.flatten(1), *placement, self.weight.shape[0])
        way = self._way(rows_NK, placement, num_cores=weights_NhK.shape[1], num_pooled=num_groups)
        return way.lookup(self, rows_NK, groups_NK % num_groups, weights_NhK, num_groups)

    def dot(self, slots: Tensor, inputs: Tensor, placement: Placement) -> Tensor:
        """As `Table.dot`; every process brings as many tokens."""
        rows_NK, _ = physical_rows(slots.flatten(1), *placement, self.weight.shape[0])
        way = self._way(rows_NK, placement, num_cores=1, num_pooled=None)
        return way.gather_dot(self, rows_NK, inputs).view(slots.shape)

    def _way(self, rows_NK: Tensor, placement: Placement, num_cores: int, num_pooled: int | None) -> ModuleType:
        """The same on all processes, for it follows from sizes that they have in common."""
        num_tokens, num_slots = rows_NK.shape
        read = Read(
            num_tokens=num_tokens,
            num_slots=num_slots,
            num_rows=placement.num_keys**2 // placement.expansion,
            width=self.weight.shape[1],
            num_cores=num_cores,
            num_pooled=num_pooled,
        )
        return pooled_rows if pools_at_owners(read, len(self.sizes)) else fetched_rows
