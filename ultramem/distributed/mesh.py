"""How the processes of a run are arranged: once for the trunk, once for the tables."""

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ultramem.distributed.agreement import is_alone


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """All processes, seen twice. Each of them computes on sequences of its own, whatever else it holds.

    ``trunk`` has the axes "replicate" and "shard": the trunk's parameters are split over the second and repeated over
    the first. ``tables`` has the axes "replicate" and "shard" too, of other sizes: the second is the table axis, which
    may span all processes.
    """

    trunk: DeviceMesh
    tables: DeviceMesh

    @property
    def rank(self) -> int:
        """This process, from 0."""
        return dist.get_rank()

    @property
    def num_ranks(self) -> int:
        """Processes in all."""
        return self.trunk.size()


def run_mesh(
    device_type: str, *, trunk_shards: int | None, table_shards: int | None, timeout_seconds: float = 600.0
) -> Mesh | None:
    """The arrangement of a run: None where a process is alone; shards of None are as many as there are processes."""
    if is_alone():
        return None
    num_ranks = dist.get_world_size()
    return make_mesh(
        device_type,
        trunk_shards=trunk_shards or num_ranks,
        table_shards=table_shards or num_ranks,
        timeout_seconds=timeout_seconds,
    )


def make_mesh(device_type: str, *, trunk_shards: int, table_shards: int, timeout_seconds: float = 600.0) -> Mesh:
    """Arrange the processes of the default group.

    Args:
        device_type: "cuda" or "cpu".
        trunk_shards: processes among which the trunk is split; 1: each has all of it.
        table_shards: processes among which a table is split; 1: each has all of it.
        timeout_seconds: how long a collective waits for a process.

    Raises:
        ValueError: the processes do not divide into such groups.

    Example:
        >>> mesh = make_mesh("cuda", trunk_shards=8, table_shards=64)  # doctest: +SKIP
        >>> mesh.tables["shard"].size()  # doctest: +SKIP
        64
    """
    num_ranks = dist.get_world_size()
    for name, shards in (("trunk_shards", trunk_shards), ("table_shards", table_shards)):
        if not 1 <= shards <= num_ranks or num_ranks % shards:
            raise ValueError(
                f"parallel.{name} is {shards}: it must divide the number of processes, which is {num_ranks}"
            )

    def arrange(shards: int) -> DeviceMesh:
        mesh = init_device_mesh(device_type, (num_ranks // shards, shards), mesh_dim_names=("replicate", "shard"))
        for group in mesh.get_all_groups():  # those beside the default group do not wait as long as it does
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_seconds), group)
        return mesh

    return Mesh(trunk=arrange(trunk_shards), tables=arrange(table_shards))
