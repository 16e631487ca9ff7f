"""On a GPU kernels are compiled for numbers of slots and of keys, which must not be new at every step."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from tests.distributed.test_tables import WAYS
from ultramem import ops
from ultramem.distributed.mesh import make_mesh
from ultramem.distributed.tables import shard_tables
from ultramem.layers.tables import Table


def sizes_of_many_reads(way, num_tokens):
    """What kernels of lookups are compiled for while as many tokens read other slots each time."""
    style, chosen = WAYS[way]
    generator = torch.Generator().manual_seed(dist.get_rank())
    model = torch.nn.ModuleDict({"table": Table(10_000, 4, std=1.0)})
    shard_tables(model, make_mesh("cpu", trunk_shards=1, table_shards=dist.get_world_size()).tables, style)
    sizes = []

    def recorded(table, slots, weights, **settings):
        sizes.append((slots.shape[1], settings["num_keys"]))
        return lookup(table, slots, weights, **settings)

    lookup = ops.lookup
    with chosen, patch.object(ops, "lookup", recorded), torch.no_grad():
        for _ in range(40):
            slots = torch.randint(10_000, (num_tokens, 1, 24), generator=generator)
            model["table"](slots, torch.ones(num_tokens, 1, 1, 24), ops.Placement(num_keys=100))
    return sizes


def check_sizes():
    lines = {slots for slots, _ in sizes_of_many_reads("pooled rows", num_tokens=3)}
    assert lines <= {12, 16, 20, 24}
    assert len(lines) > 1  # bags are not all as long
    assert len(set(sizes_of_many_reads("fetched rows", num_tokens=200))) <= 2


@pytest.mark.parametrize("num_ranks", [2])
def test_reads_of_other_lengths_use_the_same_kernels(num_ranks):
    run_ranks(check_sizes, num_ranks)
