from contextlib import nullcontext
from itertools import product
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

from tests.distributed.ranks import run_ranks
from ultramem import ops
from ultramem.distributed.columns import slice_cores
from ultramem.distributed.mesh import make_mesh
from ultramem.distributed.sharded_table import shard_sizes
from ultramem.distributed.tables import finish_table_gradients, shard_tables
from ultramem.layers.tables import Table

# tokens a process, heads, slots a head, physical keys a side, E, cores, width, other rows, first row, by group
SIZES = [
    (5, 2, 3, 6, 4, 2, 8, 0, 0, True),
    (3, 1, 7, 5, 1, 3, 15, 0, 0, True),  # slices cross the borders of cores
    (4, 2, 2, 4, 9, 1, 7, 0, 0, False),  # a last slice that is smaller; groups pooled together
    (6, 1, 4, 9, 4, 5, 10, 40, 100, True),  # a window that goes on at row 0
    (3, 1, 1, 2, 1, 1, 4, 0, 0, True),  # owners of whom nobody asks anything
]


def pool(table, slots, values, placement, by_group):
    return ops.lookup(
        table, slots.flatten(1), values.transpose(1, 2).flatten(2), **placement._asdict(), by_group=by_group
    )


def reference(table, slots, values, directions, placement, by_group, num_ranks):
    """One process that reads what all read; its loss is the mean of theirs."""
    table, values = table.clone().requires_grad_(), values.clone().requires_grad_()
    pooled = pool(table, slots, values, placement, by_group)
    (pooled * directions).sum().div(num_ranks).backward()
    return pooled.detach(), table.grad, values.grad * num_ranks


def local(tensor):
    with torch.no_grad():
        return tensor.to_local()


def check_table(mesh, style, size, sparse):
    num_tokens, heads, slots_a_head, side, expansion, cores, width, other_rows, first_row, by_group = size
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    num_keys = int(expansion**0.5) * side
    generator = torch.Generator().manual_seed(1)
    options = {"generator": generator, "dtype": torch.float64}
    rows = torch.randn(side**2 + other_rows, width, **options)
    slots = torch.randint(num_keys**2, (num_ranks * num_tokens, heads, slots_a_head), generator=generator)
    slots[num_tokens:, :, 0] = 1  # all but the first process read one row again and again
    values = torch.randn(num_ranks * num_tokens, heads, cores, slots_a_head, **options)
    directions = torch.randn(num_ranks * num_tokens, expansion if by_group else 1, width, **options)
    placement = ops.Placement(num_keys, expansion, seed=3, first_row=first_row)
    pooled, grad_rows, grad_values = reference(rows, slots, values, directions, placement, by_group, num_ranks)

    table = Table(*rows.shape, std=1.0, dtype=rows.dtype, sparse=sparse)
    with torch.no_grad():
        table.weight.copy_(rows)
    model = torch.nn.ModuleDict({"table": table, "same": table})
    shard_tables(model, mesh.tables, style)
    table = model["table"]
    assert model["same"] is table
    mine = slice(rank * num_tokens, (rank + 1) * num_tokens)
    values = values[mine].clone().requires_grad_()
    first, second = slice(0, 2), slice(2, None)  # micro-batches
    parts = [table(slots[mine][part], values[part], placement, by_group=by_group) for part in (first, second)]
    torch.testing.assert_close(torch.cat(parts), pooled[mine])
    for part, output in zip((first, second), parts, strict=True):
        (output * directions[mine][part]).sum().backward()
    torch.testing.assert_close(values.grad, grad_values[mine])

    assert table.weight.grad is None
    finish_table_gradients(model)
    gradient = local(table.weight.grad)
    assert gradient.is_sparse == sparse
    if sparse:
        assert gradient.is_coalesced()
        touched = gradient.indices()[0] + (table.first if table.dim == 0 else 0)
        assert set(touched.tolist()) <= set(grad_rows.abs().sum(dim=1).nonzero().flatten().tolist())
        gradient = gradient.to_dense()
    whole = DTensor.from_local(gradient, mesh.tables, table.weight.placements, shape=rows.shape, stride=rows.stride())
    torch.testing.assert_close(whole.full_tensor(), grad_rows)
    with torch.no_grad():
        torch.testing.assert_close(table.weight.full_tensor(), rows)


def check_dot(mesh, style, size, sparse):
    """Pre-values: one process that multiplies what all multiply."""
    num_tokens, heads, slots_a_head, side, expansion, _, width, other_rows, first_row, _ = size
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    num_keys = int(expansion**0.5) * side
    generator = torch.Generator().manual_seed(1)
    options = {"generator": generator, "dtype": torch.float64}
    rows = torch.randn(side**2 + other_rows, width, **options, requires_grad=True)
    slots = torch.randint(num_keys**2, (num_ranks * num_tokens, heads, slots_a_head), generator=generator)
    inputs = torch.randn(num_ranks * num_tokens, width, **options, requires_grad=True)
    directions = torch.randn(slots.shape, **options)
    placement = ops.Placement(num_keys, expansion, seed=3, first_row=first_row)
    products = ops.gather_dot(rows, slots.flatten(1), inputs, **placement._asdict()).view(slots.shape)
    (products * directions).sum().div(num_ranks).backward()

    table = Table(*rows.shape, std=1.0, dtype=rows.dtype, sparse=sparse)
    with torch.no_grad():
        table.weight.copy_(rows)
    model = torch.nn.ModuleDict({"table": table})
    shard_tables(model, mesh.tables, style)
    table = model["table"]
    mine = slice(rank * num_tokens, (rank + 1) * num_tokens)
    own_inputs = inputs.detach()[mine].clone().requires_grad_()
    ours = table.dot(slots[mine], own_inputs, placement)
    torch.testing.assert_close(ours, products.detach()[mine])
    (ours * directions[mine]).sum().backward()
    torch.testing.assert_close(own_inputs.grad, inputs.grad[mine] * num_ranks)
    finish_table_gradients(model)
    gradient = local(table.weight.grad)
    assert gradient.is_sparse == sparse
    gradient = gradient.to_dense() if sparse else gradient
    whole = DTensor.from_local(gradient, mesh.tables, table.weight.placements, shape=rows.shape, stride=rows.stride())
    torch.testing.assert_close(whole.full_tensor(), rows.grad)


def rows_that_are(pooled):
    """Where rows are divided: pooled at their owners or fetched, whatever sends less."""
    return patch("ultramem.distributed.rows.pools_at_owners", lambda read, num_shards: pooled)


WAYS = {
    "pooled rows": ("rows", rows_that_are(pooled=True)),
    "fetched rows": ("rows", rows_that_are(pooled=False)),
    "columns": ("columns", nullcontext()),
}


def check_tables():
    num_ranks = dist.get_world_size()
    for shards in (shards for shards in (1, 2, 4) if shards <= num_ranks):
        mesh = make_mesh("cpu", trunk_shards=1, table_shards=shards)
        for way, size, sparse in product(WAYS, SIZES, (False, True)):
            style, chosen = WAYS[way]
            try:
                with chosen:
                    check_table(mesh, style, size, sparse)
                    check_dot(mesh, style, size, sparse)
            except Exception as error:
                error.add_note(f"{shards} shards, {way}, {size=}, {sparse=}")
                raise
    mesh = make_mesh("cpu", trunk_shards=1, table_shards=num_ranks)
    for style, dim in (("rows", 0), ("columns", 1)):
        model = torch.nn.ModuleDict({"table": Table(11, 7, std=1.0)})
        shard_tables(model, mesh.tables, style)
        weight = model.state_dict()["table.weight"]
        assert weight.shape == (11, 7)
        assert weight.placements == (Replicate(), Shard(dim))
        assert list(weight.to_local().shape)[dim] == shard_sizes((11, 7)[dim], num_ranks)[dist.get_rank()]
        with pytest.raises(ValueError, match=f"cannot be divided by {style}"):
            shard_tables(torch.nn.ModuleDict({"table": Table(1, 1, std=1.0)}), mesh.tables, style)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_sharded_table_answers_and_learns_like_a_whole_one(num_ranks):
    run_ranks(check_tables, num_ranks)


@pytest.mark.parametrize(
    ("first", "size", "width", "num_cores", "cores", "chunks"),
    [
        (0, 8, 8, 1, [0], [0]),
        (4, 4, 16, 2, [0], [0]),
        (4, 4, 16, 8, [2, 3], [0, 1]),
        (3, 3, 9, 1, [0], [0]),
        (5, 5, 15, 3, [1], [0]),
        (4, 6, 12, 2, [0, 1], [0, 1, 1]),
        (3, 3, 10, 5, [1, 2], [0, 1, 1]),
    ],
)
def test_a_slice_of_columns_knows_its_cores(first, size, width, num_cores, cores, chunks):
    part = slice_cores(first, size, width, num_cores)
    assert part == (cores, chunks)
    core_of_column = [part.cores[chunk] for chunk in part.chunks for _ in range(size // len(part.chunks))]
    assert core_of_column == [column * num_cores // width for column in range(first, first + size)]
