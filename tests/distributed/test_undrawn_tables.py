"""A run on several processes begins with the numbers of one process, and no table is ever whole on any of them."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.distributed.largest_tensor import LargestTensor
from tests.distributed.ranks import run_ranks
from tests.distributed.test_training import LAYOUTS, config_of
from tests.train.tiny import losses, tiny_config, write_data
from ultramem.distributed.mesh import make_mesh
from ultramem.distributed.parallelize import parallelize
from ultramem.layers import undrawn_table
from ultramem.layers.tables import Table
from ultramem.layers.undrawn_table import UndrawnTable
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.recipes.registry import with_model
from ultramem.train import checkpoint_pieces
from ultramem.train.checkpoint import Checkpoints
from ultramem.train.trainer import train

SHARED = {"memory_units": ["1:1", "2:2"], "memory_sharing": "all"}


def build(config, table_class):
    torch.manual_seed(0)
    return UltraMemForCausalLM(config, table_class=table_class), torch.rand(3)


def what_differs():
    """Names of the weights and buffers that are not, to the bit, those of one process."""
    undrawn_table.DRAWN_AT_ONCE = 200
    wrong = []
    configs = {member: config_of(member).model for member in ("dense", "ultramem", "ultramem_v2", "peer")}
    configs["shared"] = with_model(tiny_config(), **SHARED).model
    for member, config in configs.items():
        alone, after_alone = build(config, Table)
        for layout, shards in (("columns", dist.get_world_size()), ("rows", dist.get_world_size()), ("replicas", 1)):
            mesh = make_mesh("cpu", trunk_shards=dist.get_world_size(), table_shards=shards)
            model, after = build(config, UndrawnTable)
            style = "columns" if layout == "columns" else "rows"
            parallelize(model, mesh, table_style=style, activation_checkpointing=False, compile=False)
            ours, expected = model.state_dict(), alone.state_dict()
            assert ours.keys() == expected.keys()
            ours = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in ours.items()}
            wrong += [(member, layout, name) for name in ours if not torch.equal(ours[name], expected[name])]
            wrong += [] if torch.equal(after, after_alone) else [(member, layout, "what is drawn next")]
    return wrong


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_divided_model_begins_as_a_whole_one(num_ranks):
    assert run_ranks(what_differs, num_ranks) == [[]] * num_ranks


def largest_in_training(config, data, out):
    """Bytes of the largest tensor of a training run, from the first random number to the last checkpoint."""
    with LargestTensor() as largest:
        train(config, data, out)
    return largest.num_bytes


def forget_the_second_half(out):
    (out / "summary.json").unlink()
    shutil.rmtree(Checkpoints(out / "checkpoints").path(4))


def train_and_go_on(configs, data, folder):
    """By layout: the largest tensor of a whole run, of its second half, and of the second half of one begun alone."""
    undrawn_table.DRAWN_AT_ONCE, checkpoint_pieces.PIECE_BYTES = 1000, 20_000
    found = {}
    for layout, config in configs.items():
        found[layout] = [largest_in_training(config, data, folder / layout)]
        whole_run = losses(folder / layout)
        for run in (folder / layout, folder / f"alone-{layout}"):
            dist.barrier()
            if dist.get_rank() == 0:
                forget_the_second_half(run)
            dist.barrier()
            found[layout].append(largest_in_training(config, data, run))
        assert losses(folder / layout) == whole_run
    return found


def test_no_process_holds_a_whole_table_from_the_start_to_the_end_or_when_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_pieces, "PIECE_BYTES", 20_000)
    table = {"memory_num_keys": 64, "memory_value_size": 32}
    table_bytes = 4 * 64**2 * 32
    config = with_model(tiny_config(steps=4, checkpoint_every_steps=2, micro_batch_size=1), **table)
    configs = {layout: replace(config, parallel=LAYOUTS[layout]) for layout in ("columns", "rows")}
    data = write_data(tmp_path / "data")
    for layout in configs:
        assert largest_in_training(config, data, tmp_path / f"alone-{layout}") == table_bytes
    for found in run_ranks(train_and_go_on, 2, configs, data, tmp_path):
        assert found == {layout: [table_bytes // 2] * 3 for layout in configs}
