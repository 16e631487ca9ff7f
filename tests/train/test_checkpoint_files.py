import errno
import resource
import shutil

import pytest
import torch

from ultramem.train import checkpoint_files
from ultramem.train.checkpoint_files import CheckpointError, Checkpoints


def state(value, size=8):
    return {"model": {"weight": torch.full((size,), float(value))}, "rate": 0.5 * value}


def loaded(checkpoints, step, size=8):
    result = state(0, size)
    checkpoints.load(step, result)
    return result


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_saved_is_loaded(checkpoints):
    assert (checkpoints.steps, checkpoints.newest_step) == ([], None)
    checkpoints.save(7, state(3))
    result = loaded(checkpoints, 7)
    assert torch.equal(result["model"]["weight"], torch.full((8,), 3.0))
    assert result["rate"] == 1.5


def test_a_part_can_be_loaded_alone(checkpoints):
    checkpoints.save(7, state(3))
    part = {"model": {"weight": torch.zeros(8)}}
    checkpoints.load(7, part)
    assert part["model"]["weight"][0] == 3


def test_only_the_last_ones_are_kept(checkpoints):
    for step in (10, 20, 30, 123456789):
        checkpoints.save(step, state(step))
    assert checkpoints.steps == [30, 123456789]
    assert len(list(checkpoints.folder.iterdir())) == 2


def test_half_written_and_half_removed_ones_are_not_seen_and_cleaned_away(checkpoints):
    checkpoints.save(10, state(1))
    for stray in ("step-00000020.tmp", "step-00000005.removed.tmp"):
        shutil.copytree(checkpoints.path(10), checkpoints.folder / stray)
    assert checkpoints.steps == [10]
    checkpoints.clean()
    assert [entry.name for entry in checkpoints.folder.iterdir()] == ["step-00000010"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_damage_is_found_and_named_and_says_what_to_do(checkpoints, damage):
    for step in (10, 20):
        checkpoints.save(step, state(step))
    (file,) = checkpoints.path(20).glob("*.distcp")
    content = file.read_bytes()
    if damage == "flip":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "remove":
        file.unlink()
    else:
        (checkpoints.path(20) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000020 is damaged .*remove that folder to go on from step 10"):
        loaded(checkpoints, 20)
    shutil.rmtree(checkpoints.path(20))
    assert loaded(checkpoints, checkpoints.newest_step)["rate"] == 5.0


def test_another_shape_is_an_error_and_not_a_guess(checkpoints):
    checkpoints.save(10, state(1))
    with pytest.raises(CheckpointError, match="begin again"):
        loaded(checkpoints, 10, size=9)


def test_a_full_disk_is_a_clear_error_and_the_last_one_stays(checkpoints, monkeypatch):
    checkpoints.save(10, state(1))
    before = contents(checkpoints.folder)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "write_json", full)
    with pytest.raises(CheckpointError, match=r"step-00000020: No space left on device; .*step-00000010 is intact"):
        checkpoints.save(20, state(2))
    assert contents(checkpoints.folder) == before


def test_a_disk_that_fills_while_tensors_are_written_is_the_same(checkpoints):
    checkpoints.save(10, state(1))
    before = contents(checkpoints.folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*step-00000010 is intact"):
            checkpoints.save(20, state(2, size=200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(checkpoints.folder) == before


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="no earlier one exists"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, state(1))
