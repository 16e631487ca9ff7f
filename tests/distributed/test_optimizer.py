from itertools import product

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from ultramem import ops
from ultramem.distributed.mesh import make_mesh
from ultramem.distributed.tables import finish_table_gradients, shard_tables
from ultramem.layers.tables import Table
from ultramem.optim import RowAdamW, clip_factor, clip_gradients, clipped_step, gradient_norm

PLACEMENT = ops.Placement(num_keys=10, expansion=4)


def steps(table, rank, num_ranks, finish):
    """Three steps on other reads each time; the loss is the mean over ranks. Returns the gradients' norms.

    The whole table's gradient is clipped in place, that of a part where its row is stepped.
    """
    optimizer = RowAdamW([table.weight], lr=0.1, weight_decay=0.1, state=table.state)
    norms = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        slots = torch.randint(100, (num_ranks, 1, 2), generator=generator)
        values = torch.randn(num_ranks, 1, 2, 2, generator=generator)
        ranks = range(num_ranks) if rank is None else [rank]
        loss = sum((table(slots[[r]], values[[r]], PLACEMENT) - 1).square().sum() for r in ranks) / len(ranks)
        loss.backward()
        finish()
        if rank is None:
            norms.append(clip_gradients([table.weight], 0.5).item())
            optimizer.step()
        else:
            norm = gradient_norm([table.weight])
            norms.append(norm.item())
            clipped_step(optimizer, clip_factor(norm, 0.5))
        optimizer.zero_grad()
    return norms, optimizer.state[table.weight]


def make_table(sparse, state):
    torch.manual_seed(0)
    table = Table(25, 8, std=1.0, sparse=sparse)
    table.state = state
    return table


def check(mesh, style, sparse, state):
    num_ranks = dist.get_world_size()
    whole = make_table(sparse, state)
    expected, expected_state = steps(whole, None, num_ranks, lambda: None)
    model = torch.nn.ModuleDict({"table": make_table(sparse, state)})
    shard_tables(model, mesh.tables, style)
    model["table"].state = state
    norms, moments = steps(model["table"], dist.get_rank(), num_ranks, lambda: finish_table_gradients(model))
    assert norms == pytest.approx(expected, rel=1e-5)
    weight = model["table"].weight
    with torch.no_grad():
        torch.testing.assert_close(weight.full_tensor(), whole.weight, rtol=1e-4, atol=1e-4)
        for name in ("exp_avg", "exp_avg_sq"):
            assert moments[name].device_mesh == mesh.tables
            exact = {"rtol": 1e-4, "atol": 1e-6} if moments[name].dtype == torch.float32 else {}
            torch.testing.assert_close(moments[name].full_tensor(), expected_state[name], **exact)
    assert moments["exp_avg"].placements == weight.placements
    assert moments["step"].item() == 3


def check_all():
    num_ranks = dist.get_world_size()
    for shards in {1, 2, num_ranks}:
        mesh = make_mesh("cpu", trunk_shards=1, table_shards=shards)
        for style, sparse, state in product(("rows", "columns"), (False, True), ("full", "small")):
            try:
                check(mesh, style, sparse, state)
            except Exception as error:
                error.add_note(f"{shards} shards by {style}, {sparse=}, {state=}")
                raise


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_step_of_the_tables_optimizer_is_that_of_one_process(num_ranks):
    run_ranks(check_all, num_ranks)
