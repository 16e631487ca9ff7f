"""Tables over many processes, applied from outside: the layers do not know.

Their ``Table`` is replaced by one that holds a part and answers as if it held all. How it looks in a ``state_dict``:
`ultramem.distributed.sharded_table`.
"""

from typing import Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ultramem.distributed.columns import ColumnTable
from ultramem.distributed.replicas import ReplicatedTable
from ultramem.distributed.rows import RowTable
from ultramem.distributed.sharded_table import ShardedTable
from ultramem.layers.tables import Table

Style = Literal["rows", "columns"]


def shard_tables(model: nn.Module, mesh: DeviceMesh, style: Style) -> None:
    """Replace every table of a model by this process's part of it.

    Args:
        model: holds `Table` modules, initialised alike on all processes.
        mesh: `Mesh.tables`. Where its shard axis has size 1, every process has whole tables.
        style: "rows" or "columns".

    Raises:
        ValueError: there are fewer rows or columns than parts.
    """
    kinds = {"rows": RowTable, "columns": ColumnTable}
    kind = kinds[style] if mesh["shard"].size() > 1 else ReplicatedTable
    sharded: dict[Table, ShardedTable] = {}  # one table may be found in several places
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, Table) and not isinstance(module, ShardedTable):
            sharded[module] = sharded.get(module) or kind(module, mesh)
            model.set_submodule(name, sharded[module])


def sharded_tables(model: nn.Module) -> list[ShardedTable]:
    """A model's sharded tables, each once, in the same order on all processes."""
    return [module for module in model.modules() if isinstance(module, ShardedTable)]


def finish_table_gradients(model: nn.Module) -> None:
    """`ShardedTable.finish_gradient` of every table."""
    for table in sharded_tables(model):
        table.finish_gradient()
