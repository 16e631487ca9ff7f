"""Tables that memory units share: who reads which rows, what it costs, and that gradients add up."""

import pytest
import torch

from ultramem import UltraMemConfig, accounting
from ultramem.layers.tables import Table
from ultramem.models.sharing import table_rows, unit_windows
from ultramem.optim import RowAdamW, parameter_groups

SIZES = {"memory_num_keys": 10, "memory_key_size": 8, "memory_value_size": 16, "memory_top_k": 4}
SIX = {**SIZES, "memory": "ultramem", "memory_units": [f"{block}:{block}" for block in range(1, 7)]}
SHARED = ("ultramem-ring", "ultramem-v2-ring", "memory-plus", "peer-block")


@pytest.mark.parametrize(
    ("sharing", "window", "rows", "windows", "keys"),
    [
        ("own", 1, [100] * 6, [(unit, 0) for unit in range(6)], 20),
        ("ring", 4, [600], [(0, 100 * unit) for unit in range(6)], 40),
        ("ring", 3, [600], [(0, 100 * unit) for unit in range(6)], 34),
        ("block", 2, [200] * 3, [(0, 0), (0, 0), (1, 0), (1, 0), (2, 0), (2, 0)], 28),
        ("all", 1, [100], [(0, 0)] * 6, 20),
    ],
)
def test_rows_windows_and_keys(sharing, window, rows, windows, keys):
    config = UltraMemConfig(**SIX, memory_sharing=sharing, memory_window=window)
    assert table_rows(config) == rows
    assert unit_windows(config) == windows
    count = accounting.count_parameters(config)
    assert count.tables == sum(rows) * 16
    # A query of 2 sides, H = 2 key sets of 2 sides, and E = 4 projections.
    assert count.memory == 6 * (2 * 512 * 8 + 2 * 2 * keys * 8 + 4 * 16 * 512)


def test_a_ring_reads_round_the_end(build, tokens):
    """The last unit's window is its own rows and the first unit's: a table with those alone gives the same."""
    model = build("ultramem-ring")
    trunk = model.model
    layer, shared = trunk.memory_layers[2], trunk.tables[0]
    hidden = torch.randn(1, 5, 32)
    together = layer(hidden, shared)
    alone = Table(2 * 144, 16, std=1.0)
    alone.weight.data = torch.cat([shared.weight[2 * 144 :], shared.weight[:144]]).detach()
    layer.placement = layer.placement._replace(first_row=0)
    assert layer.placement.num_keys**2 // layer.placement.expansion > 144
    torch.testing.assert_close(layer(hidden, alone).hidden_states, together.hidden_states, rtol=0, atol=0)


@pytest.mark.parametrize("name", SHARED)
def test_sparse_gradients_of_several_units_add_up(build, tokens, name):
    dense, sparse = build(name), build(name)
    tables = [module for module in sparse.modules() if isinstance(module, Table)]
    for table in tables:
        table.sparse = True
    for model in (dense, sparse):
        for half in (tokens[:2], tokens[2:]):  # as of an accumulated batch
            model(half, labels=half).loss.backward()
    for (parameter_name, ours), theirs in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        gradient = ours.grad.to_dense() if ours.grad.is_sparse else ours.grad
        torch.testing.assert_close(gradient, theirs.grad, msg=lambda text, name=parameter_name: f"{name}: {text}")
    assert all(table.weight.grad.is_sparse for table in tables)


@pytest.mark.parametrize("name", SHARED)
def test_one_step_of_the_tables_optimizer_is_the_same_for_both_forms(build, tokens, name):
    """At the first step lazy AdamW is AdamW: a row without a gradient stays where it is."""
    stepped = []
    for sparse in (False, True):
        model = build(name)
        tables = [module for module in model.modules() if isinstance(module, Table)]
        for table in tables:
            table.sparse = sparse
        model(tokens, labels=tokens).loss.backward()
        groups = parameter_groups(model, learning_rate=1e-2, weight_decay=0.1)
        mine = [group for group in groups if group["name"] == "tables"]
        assert [id(parameter) for parameter in mine[0]["params"]] == [id(table.weight) for table in tables]
        RowAdamW(mine).step()
        stepped.append([table.weight.detach() for table in tables])
    for dense, lazy in zip(*stepped, strict=True):
        torch.testing.assert_close(lazy, dense, rtol=1e-4, atol=1e-5)
