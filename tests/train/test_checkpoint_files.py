import errno
import resource
import shutil
import threading
from contextlib import contextmanager

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ultramem.train import checkpoint_files, checkpoint_folder, checkpoint_pieces
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


@contextmanager
def limited_files(num_bytes):
    """A longer file is an OSError, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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


def damage(checkpoints, step):
    (file,) = checkpoints.path(step).glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1])


def test_damaged_ones_are_set_aside_up_to_the_last_good_one(checkpoints):
    checkpoints.keep = 4
    for step in (10, 20, 30, 40):
        checkpoints.save(step, state(step))
    assert checkpoints.set_aside_damaged() == []
    for step in (10, 30, 40):
        damage(checkpoints, step)
    aside = checkpoints.set_aside_damaged()
    assert [path.name for path in aside] == ["step-00000040.damaged", "step-00000030.damaged"]
    assert all(path.is_dir() for path in aside)
    assert checkpoints.steps == [10, 20]
    assert loaded(checkpoints, 20)["rate"] == 10
    checkpoints.save(40, state(4))
    damage(checkpoints, 40)
    assert checkpoints.set_aside_damaged() == aside[:1]


def test_where_all_are_damaged_none_is_set_aside(checkpoints):
    for step in (10, 20):
        checkpoints.save(step, state(step))
        damage(checkpoints, step)
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged: remove that folder to begin again"):
        checkpoints.set_aside_damaged()
    assert checkpoints.steps == [10, 20]


def test_a_save_in_the_background_holds_what_was_when_it_began(checkpoints, monkeypatch):
    go_on, write = threading.Event(), checkpoint_files.write_folder

    def wait_and_write(*arguments):
        go_on.wait()
        write(*arguments)

    monkeypatch.setattr(checkpoint_files, "write_folder", wait_and_write)
    live = state(3)
    checkpoints.save(7, live, background=True)
    live["model"]["weight"].zero_()
    live["rate"] = 0.0
    assert checkpoints.steps == []
    go_on.set()
    checkpoints.save(8, live, background=True)
    assert checkpoints.steps[:1] == [7]
    checkpoints.finish()
    assert checkpoints.steps == [7, 8]
    assert loaded(checkpoints, 7) == {"model": {"weight": approx(3.0)}, "rate": 1.5}
    assert loaded(checkpoints, 8) == {"model": {"weight": approx(0.0)}, "rate": 0.0}


def approx(value):
    return pytest.approx(torch.full((8,), value), abs=0)


@pytest.mark.parametrize("then", ["finish", "save"])
def test_an_error_in_the_background_comes_out_with_the_next_call(checkpoints, then):
    checkpoints.save(10, state(1))
    before = contents(checkpoints.folder)
    with limited_files(100_000):
        checkpoints.save(20, state(2, size=200_000), background=True)
        with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*step-00000010 is intact"):
            checkpoints.finish() if then == "finish" else checkpoints.save(30, state(3))
    assert contents(checkpoints.folder) == before
    checkpoints.save(30, state(3))
    assert checkpoints.steps == [10, 30]


def test_large_tensors_are_stored_in_pieces_and_put_together_again(checkpoints, monkeypatch):
    monkeypatch.setattr(checkpoint_pieces, "PIECE_BYTES", 100)
    tensors = {
        "table": torch.randn(23, 6),
        "long": torch.arange(1000),
        "wide": torch.randn(2, 77),
        "transposed": torch.randn(6, 23).T,
        "small": torch.randn(3),
        "one": torch.tensor(5.0),
        "none": torch.empty(0, 7),
    }
    checkpoints.save(1, tensors)
    metadata = dcp.FileSystemReader(checkpoints.path(1)).read_metadata().state_dict_metadata
    pieces = {name: [tuple(chunk.sizes) for chunk in stored.chunks] for name, stored in metadata.items()}
    assert pieces["table"] == [(4, 6)] * 5 + [(3, 6)]
    assert sum(length for (length,) in pieces["long"]) == 1000
    assert max(length for (length,) in pieces["long"]) * 8 <= 100
    assert pieces["wide"] == [(1, 77)] * 2
    assert [len(pieces[name]) for name in ("small", "one")] == [1, 1]
    again = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoints.load(1, again)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_another_shape_is_an_error_and_not_a_guess(checkpoints):
    checkpoints.save(10, state(1))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        loaded(checkpoints, 10, size=9)


def test_a_full_disk_is_a_clear_error_and_the_last_one_stays(checkpoints, monkeypatch):
    checkpoints.save(10, state(1))
    before = contents(checkpoints.folder)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_folder, "write_json", full)
    with pytest.raises(CheckpointError, match=r"step-00000020: No space left on device; .*step-00000010 is intact"):
        checkpoints.save(20, state(2))
    assert contents(checkpoints.folder) == before


def test_a_disk_that_fills_while_tensors_are_written_is_the_same(checkpoints):
    checkpoints.save(10, state(1))
    before = contents(checkpoints.folder)
    message = r"cannot write checkpoint .*step-00000010 is intact"
    with limited_files(100_000), pytest.raises(CheckpointError, match=message):
        checkpoints.save(20, state(2, size=200_000))
    assert contents(checkpoints.folder) == before


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="no earlier one exists"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, state(1))
