"""The same run on one process and on several: the same losses.

In float64, where another order of addition is worth some 1e-16: what is further apart is not rounding.
"""

from dataclasses import replace

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.utils._pytree import keystr, tree_flatten_with_path

from tests.distributed.ranks import run_ranks
from tests.train.tiny import losses, tiny_config, write_data
from ultramem.recipes.registry import with_model
from ultramem.train.checkpoint import Checkpoints
from ultramem.train.config import ParallelConfig
from ultramem.train.trainer import train

MEMORIES = {
    "dense": {"memory": None, "memory_units": []},
    "moe": {"memory": None, "memory_units": [], "ffn": "moe", "num_experts": 4, "moe_intermediate_size": 16},
    "pkm": {"memory": "pkm", "memory_expansion": 1},
    "memory_plus": {"memory": "memory_plus", "memory_expansion": 1, "memory_units": ["1:1", "2:2"]},
    "peer": {"memory": "peer", "memory_expansion": 1, "memory_value_size": 32},
    "ultramem": {},
    "ring": {"memory_units": ["1:1", "2:2"], "memory_sharing": "ring", "memory_window": 2},
    "ultramem_v2": {"memory": "ultramem_v2", "memory_pre_value_size": 8, "memory_units": ["1:1", "2:2"]},
}
LAYOUTS = {
    "columns": ParallelConfig(tables="columns"),
    "rows": ParallelConfig(tables="rows"),
    "replicate": ParallelConfig(tables="replicate", trunk="replicate"),
}


def config_of(member, **changes):
    """A run without dropout, whose masks depend on the rank; clipped, and accumulated where it is alone."""
    config = with_model(tiny_config(batch_size=8, micro_batch_size=2), dropout=0.0, **MEMORIES[member])
    return replace(config, **changes)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train_all(runs, data):
    torch.set_default_dtype(torch.float64)
    for out, config in runs:
        train(config, data, out)


def check(members, layouts, num_ranks, folder, **changes):
    data = write_data(folder / "data")
    runs = {}
    for member in members:
        config = config_of(member, **changes)
        train(config, data, folder / member)
        for layout in layouts if config.model.memory else ["replicate", "columns"]:
            runs[member, layout] = (
                folder / f"{member}-{layout}",
                # Of a step's eight sequences two at a time go through a model, on however many processes.
                replace(config, parallel=LAYOUTS[layout]),
            )
    run_ranks(train_all, num_ranks, list(runs.values()), data)
    for (member, layout), (out, _) in runs.items():
        assert_same(losses(folder / member), losses(out), f"{member} by {layout}")
        if config.optimizer.table_optimizer_state == "small":
            continue  # of low precision: a number between two may fall to either side, and moves others
        expected, ended = whole_state(folder / member, config.steps), whole_state(out, config.steps)
        assert ended.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(ended[name], tensor, rtol=1e-9, atol=1e-9, msg=f"{member} by {layout}: {name}")


def whole_state(run, step):
    """Weights, buffers and moments, in which is every gradient, put together from all processes."""
    file = run / "whole.pt"
    dcp_to_torch_save(Checkpoints(run / "checkpoints").path(step), file)
    leaves, _ = tree_flatten_with_path(torch.load(file))
    return {keystr(path): value for path, value in leaves if isinstance(value, torch.Tensor)}


def assert_same(expected, measured, what):
    assert len(expected) == len(measured), what
    for one, other in zip(expected, measured, strict=True):
        assert one.keys() == other.keys(), what
        for name in ("loss", "cross_entropy", "auxiliary_loss", "gradient_norm", "validation_loss"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-9), f"{what}, step {one['step']}: {name}"


def test_ultramem_on_two_processes(tmp_path):
    check(["ultramem"], ["columns", "rows", "replicate"], 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("member", MEMORIES)
def test_every_member_of_the_family(member, num_ranks, tmp_path):
    check([member], ["columns", "rows"], num_ranks, tmp_path, steps=20)


@pytest.mark.slow
def test_four_processes_in_two_groups_and_settings_of_all_kinds(tmp_path, monkeypatch):
    """Tables and trunk split in two halves that repeat each other; lazy tables, small state, checkpointing."""
    monkeypatch.setitem(LAYOUTS, "columns", ParallelConfig(tables="columns", table_shards=2, trunk_shards=2))
    monkeypatch.setitem(LAYOUTS, "rows", ParallelConfig(tables="rows", table_shards=2, trunk="replicate"))
    base, model = tiny_config().optimizer, replace(config_of("ultramem").model, memory_num_keys=40)
    for name, optimizer in {
        "lazy": replace(base, lazy_tables=True),
        "measured": replace(base, lazy_tables=True, lazy_share=0.43),  # steps read 41 to 45 of a hundred rows
        "small": replace(base, table_optimizer_state="small"),
    }.items():
        (tmp_path / name).mkdir()
        check(
            ["ultramem"],
            list(LAYOUTS),
            4,
            tmp_path / name,
            steps=12,
            model=model,
            optimizer=optimizer,
            activation_checkpointing=True,
        )
