"""What goes wrong on one rank while a checkpoint is saved or loaded stops all ranks with the same words."""

import resource
import shutil

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from ultramem.distributed.agreement import is_first_rank
from ultramem.train.checkpoint_files import CheckpointError, Checkpoints


def state(size=8):
    """The larger tensors go to one rank each."""
    return {f"of rank {rank}": torch.full((size,), float(rank)) for rank in range(2)}


def error_of(function, *arguments, **keywords):
    with pytest.raises(CheckpointError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


def save_with_a_full_disk(folder, full_rank, background):
    checkpoints = Checkpoints(folder)
    checkpoints.save(10, state())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == full_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    def save():
        checkpoints.save(20, state(200_000), background=background)
        checkpoints.finish()

    error = error_of(save)
    dist.barrier()
    left = sorted(path.name for path in folder.iterdir())
    dist.barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.save(20, state(200_000))
    again = state(200_000)
    checkpoints.load(20, again)
    return error, left, checkpoints.steps, float(again["of rank 1"][-1])


@pytest.mark.parametrize(("full_rank", "background"), [(0, False), (1, False), (1, True)])
def test_a_full_disk_of_one_rank_stops_all_and_the_last_checkpoint_stays(tmp_path, full_rank, background):
    first, second = run_ranks(save_with_a_full_disk, 2, tmp_path, full_rank, background)
    assert first == second
    error, left, steps, value = first
    assert "step-00000020: File too large; " in error
    assert "step-00000010 is intact: make room, then run the same command again" in error
    assert left == ["step-00000010"]
    assert (steps, value) == ([20], 1.0)


def save_where_a_file_is_in_the_way(folder):
    return error_of(Checkpoints(folder / "file" / "checkpoints").save, 1, state())


def test_a_folder_that_cannot_be_made_stops_all(tmp_path):
    (tmp_path / "file").write_text("in the way")
    first, second = run_ranks(save_where_a_file_is_in_the_way, 2, tmp_path)
    assert first == second
    assert "Not a directory; no earlier one exists" in first


def load_damaged(folder, damage):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (10, 20):
        checkpoints.save(step, state())
    if is_first_rank():
        damage(checkpoints.path(20))
    dist.barrier()
    error = error_of(checkpoints.load, 20, state())
    aside = checkpoints.set_aside_damaged()
    checkpoints.load(10, state())
    return error, [path.name for path in aside], checkpoints.steps


def remove_a_shard(path):
    (path / "__1_0.distcp").unlink()


def change_a_shard(path):
    file = path / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def remove_the_manifest(path):
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (remove_a_shard, "__1_0.distcp"),
        (change_a_shard, "__1_0.distcp"),
        (remove_the_manifest, "manifest.json"),
        (shutil.rmtree, "manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_named_alike_on_all_ranks_and_can_be_set_aside(tmp_path, damage, file):
    first, second = run_ranks(load_damaged, 2, tmp_path, damage)
    assert first == second
    error, aside, steps = first
    assert f"step-00000020 is damaged ({file} missing or changed since it was written)" in error
    assert error.endswith("remove that folder to go on from step 10")
    assert (aside, steps) == (["step-00000020.damaged"] if damage is not shutil.rmtree else [], [10])
