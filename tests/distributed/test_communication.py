"""The bytes of the collectives are those of the formulas."""

from functools import partial
from math import isqrt

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.distributed.ranks import run_ranks
from tests.distributed.sent_bytes import SentBytes
from tests.distributed.test_tables import rows_that_are
from ultramem import ops
from ultramem.distributed.communication import (
    Links,
    Passes,
    Read,
    Traffic,
    sent_by_columns,
    sent_by_fetched_rows,
    sent_by_pooled_rows,
    sent_by_replicas,
    sent_by_trunk,
)
from ultramem.distributed.mesh import make_mesh
from ultramem.distributed.parallelize import shard_trunk
from ultramem.distributed.replica_gradients import rows_are_cheaper
from ultramem.distributed.tables import finish_table_gradients, shard_tables
from ultramem.layers.memory import arrived
from ultramem.layers.tables import Table
from ultramem.ops.lookup.permutation import physical_rows

# tokens a process, heads, slots a head, rows, E, cores, width, other rows of the table
SIZES = [
    (5, 2, 3, 36, 4, 2, 8, 0),
    (3, 1, 7, 25, 1, 3, 15, 0),  # slices cross the borders of cores, and the last is smaller
    (40, 2, 4, 144, 4, 1, 7, 12),  # rows are read again
]


def make_table(size, shards, style, sparse):
    table = Table(size[3] + size[7], size[6], std=1.0, sparse=sparse)
    model = nn.ModuleDict({"table": table})
    shard_tables(model, make_mesh("cpu", trunk_shards=1, table_shards=shards).tables, style)
    return model


def read_of(size, pooled):
    num_tokens, heads, slots_a_head, num_rows, expansion, cores, width, _ = size
    return Read(
        num_tokens=num_tokens,
        num_slots=heads * slots_a_head,
        num_rows=num_rows,
        width=width,
        num_cores=cores,
        num_pooled=expansion if pooled else None,
    )


def measure(model, size, pooled):
    """Bytes sent by a forward, a backward pass and the end of a step; and the rows ``(N, K)`` and groups read."""
    num_tokens, heads, slots_a_head, num_rows, expansion, cores, width, _ = size
    table = model["table"]
    generator = torch.Generator().manual_seed(dist.get_rank())
    num_keys = isqrt(num_rows * expansion)
    slots = torch.randint(num_keys**2, (num_tokens, heads, slots_a_head), generator=generator)
    placement = ops.Placement(num_keys, expansion, seed=3, first_row=5)
    values = torch.randn(num_tokens, heads, cores, slots_a_head, requires_grad=True)
    inputs = torch.randn(num_tokens, width, requires_grad=True)

    def read():
        if pooled:
            return table.start(slots, values, placement)
        return table.dot(slots, inputs, placement).square()  # needed for the backward pass, as gates are

    forward, backward = passes_of(read)
    with SentBytes() as end:
        finish_table_gradients(model)
    _, with_forward = passes_of(partial(checkpoint, read, use_reentrant=False))
    rows, groups = physical_rows(slots.flatten(1), num_keys, expansion, 3, 5, table.weight.shape[0])
    return Passes(forward, backward, with_forward - backward), end.total, rows, groups


def passes_of(read):
    with SentBytes() as forward:
        output = arrived(read())
    with SentBytes() as backward:
        output.sum().backward()
    return forward.total, backward.total


def check_columns(size, pooled):
    num_shards, rank = dist.get_world_size(), dist.get_rank()
    measured, *_ = measure(make_table(size, num_shards, "columns", False), size, pooled)
    assert measured == pytest.approx(sent_by_columns(read_of(size, pooled), num_shards, rank))


def check_sums(measured, expected):
    """By rows a process sends what others ask of it, so the sums over all processes are compared."""
    both = torch.tensor([measured, expected], dtype=torch.float64)
    dist.all_reduce(both)
    torch.testing.assert_close(both[0], both[1])


def check_fetched_rows(size, pooled):
    num_shards = dist.get_world_size()
    model = make_table(size, num_shards, "rows", False)
    with rows_that_are(pooled=False):
        measured, _, rows, _ = measure(model, size, pooled)
    fetched = int(of_others(model["table"], rows.unique()).sum())
    check_sums(measured, sent_by_fetched_rows(read_of(size, pooled), num_shards, fetched))


def check_pooled_rows(size, pooled):
    num_shards = dist.get_world_size()
    model = make_table(size, num_shards, "rows", False)
    with rows_that_are(pooled=True):
        measured, _, rows, groups = measure(model, size, pooled)
    others = of_others(model["table"], rows)
    owners = rows // model["table"].sizes[0]
    tokens = torch.arange(len(rows))[:, None].expand_as(rows)
    bags = torch.stack([tokens, owners, groups if pooled else groups * 0])[:, others].unique(dim=1).shape[1]
    check_sums(measured, sent_by_pooled_rows(read_of(size, pooled), num_shards, int(others.sum()), bags))


def of_others(table, rows):
    """Which of the rows are on other processes."""
    return rows // table.sizes[0] != table.axis.get_local_rank()


def check_replicas(size, sparse):
    num_replicas = dist.get_world_size()
    model = make_table(size, 1, "rows", sparse)
    passes, end, rows, _ = measure(model, size, True)
    assert passes == (0, 0, 0)
    most = torch.tensor(len(rows.unique()))
    dist.all_reduce(most, dist.ReduceOp.MAX)
    num_rows = size[3] + size[7]
    assert end == pytest.approx(sent_by_replicas(int(most), num_rows, size[6], num_replicas, sparse=sparse))
    return rows_are_cheaper(int(most), num_rows, 4 * size[6], num_replicas)


def check_trunk():
    num_shards = dist.get_world_size()
    decoder = nn.Module()
    decoder.reads_ahead = False
    decoder.layers, decoder.memory_layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3)), nn.ModuleList()
    model = nn.Module()
    model.model, model.head = decoder, nn.Linear(16, 8)
    model.forward = lambda inputs: model.head(nn.Sequential(*decoder.layers)(inputs))
    shard_trunk(model, make_mesh("cpu", trunk_shards=num_shards, table_shards=1).trunk)
    with SentBytes() as forward:
        output = model(torch.randn(2, 16))
    with SentBytes() as backward:
        output.sum().backward()
    expected = sent_by_trunk(blocks=3 * (16 * 16 + 16), rest=16 * 8 + 8, num_shards=num_shards)
    assert (forward.total, backward.total) == pytest.approx(expected[:2])


def check_all():
    for size in SIZES:
        for pooled in (True, False):
            check_columns(size, pooled)
            check_fetched_rows(size, pooled)
            check_pooled_rows(size, pooled)
    ways = {check_replicas(size, sparse) for size in [*SIZES, (1, 1, 2, 400, 1, 1, 8, 0)] for sparse in (True, False)}
    assert ways == {True, False}  # touched rows where they are few, all rows where they are many
    check_trunk()


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_collectives_send_what_the_formulas_say(num_ranks):
    run_ranks(check_all, num_ranks)


def test_different_rows_are_as_many_as_expected():
    read = Read(num_tokens=500, num_slots=8, num_rows=2500, width=8)
    counts = torch.tensor([len(torch.randint(2500, (4000,)).unique()) for _ in range(50)], dtype=torch.float64)
    # The count of different rows varies less than a Poisson number of the same mean.
    assert abs(counts.mean().item() - read.distinct_rows()) < 4 * (read.distinct_rows() / 50) ** 0.5


def test_sums_are_as_many_as_expected():
    num_shards, read = 4, Read(num_tokens=500, num_slots=12, num_rows=2500, width=8, num_pooled=4)
    counts = []
    for _ in range(50):
        rows, groups = torch.randint(2500, (500, 12)), torch.randint(4, (500, 12))
        bags = torch.arange(500)[:, None] * 16 + rows // 625 * 4 + groups
        counts.append(len(bags[rows >= 625].unique()))
    asked = 16 * 3 + 500 * 12 * 3 / 4 * 8
    expected = (sent_by_pooled_rows(read, num_shards).forward - asked) / (4 + 4 * 8)
    assert abs(torch.tensor(counts, dtype=torch.float64).mean().item() - expected) < 4 * (expected / 50) ** 0.5


def test_the_published_formulas_without_backward_without_groups_of_one_core():
    """Appendix of UltraMem: columns 4 T m (P-1) + 4 T m (P-1) + 4 T D_v (P-1)/P bytes of fp32; all rows distinct."""
    num_shards, tokens, slots, width = 8, 64, 42, 512
    read = Read(num_tokens=tokens, num_slots=slots, num_rows=10**9, width=width)
    columns = 8 * tokens * slots * 7 + 4 * tokens * width * 7 / 8
    assert sent_by_columns(read, num_shards).forward == columns
    rows = (4 + 4 * width) * tokens * slots * 7 / 8
    assert sent_by_fetched_rows(read, num_shards).forward == pytest.approx(rows, rel=1e-4)


def test_links():
    links = Links(gpus_per_node=4, node_bandwidth=100, network_bandwidth=10)
    assert links.seconds(Traffic(0, size=1)) == 0
    assert links.seconds(Traffic(300, size=4)) == 3  # one node
    assert links.seconds(Traffic(700, size=8)) == 40  # four of seven are in another node
    assert links.seconds(Traffic(100, size=2, stride=4)) == 10  # replicas in two nodes
    assert links.seconds(Traffic(300, size=4, stride=2)) == 20  # two replicas in each of two nodes
    with pytest.raises(ValueError, match="network_bandwidth is 0"):
        Links(network_bandwidth=0)
