"""What happens to one rank of a training run happens to all: a signal, a full disk, a loss that is not finite."""

import json
import math
import signal
import time

import pytest
import torch

from tests.distributed.ranks import run_ranks, shorten_timeouts, start_ranks
from tests.train.tiny import losses, tiny_config, write_data
from ultramem.distributed.lost_ranks import LostRankError
from ultramem.train.checkpoint import Checkpoints
from ultramem.train.journal import Journal
from ultramem.train.trainer import Trainer, TrainingError, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("faults") / "data")


def train_with(data, out, fault, rank, **changes):
    """Train; before step 7 the fault happens to a rank, or to all (None). Return the summary's status or the error."""
    take_step = Trainer.take_step

    def patched(trainer):
        if trainer.step == 6 and rank in (trainer.rank, None):
            fault(trainer)
        return take_step(trainer)

    Trainer.take_step = patched
    try:
        return train(tiny_config(checkpoint_every_steps=4, **changes), data, out)["status"]
    except (TrainingError, LostRankError) as error:
        return str(error)


def nothing(trainer):
    pass


def terminate(trainer):
    signal.raise_signal(signal.SIGTERM)


def poison(trainer):
    with torch.no_grad():
        trainer.model.model.tables[0].part[:, 3] = math.nan


def fill_the_disk(trainer):
    def full(*_):
        raise OSError(28, "No space left on device")

    Journal.write = full


def hang(trainer):
    if trainer.rank == 1:
        time.sleep(600)
    shorten_timeouts(3)


def both(data, out, fault, rank, **changes):
    first, second = run_ranks(train_in_environment, 2, data, out, fault, rank, changes, join=False)
    assert first == second
    return first


def train_in_environment(data, out, fault, rank, changes):
    return train_with(data, out, fault, rank, **changes)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "unbroken"
    assert both(data, out, nothing, 0) == "finished"
    return out


def goes_on_as_if_nothing_had_been(data, out, unbroken):
    assert both(data, out, nothing, 0) == "finished"
    assert losses(out) == losses(unbroken)
    newest, expected = (Checkpoints(run / "checkpoints").path(20) for run in (out, unbroken))
    assert all(file.read_bytes() == (newest / file.name).read_bytes() for file in expected.glob("*.distcp"))


def test_two_ranks_keep_one_run_folder(unbroken):
    lines = losses(unbroken)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
    assert len(json.loads((unbroken / "environment.json").read_text())) == 1
    assert json.loads((unbroken / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_saves_and_ends_all_after_the_step_under_way(data, tmp_path, unbroken, rank):
    assert both(data, tmp_path / "run", terminate, rank, checkpoint_in_background=True) == "stopped at step 7"
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps == [4, 7]
    goes_on_as_if_nothing_had_been(data, tmp_path / "run", unbroken)


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_with_one_message(data, tmp_path, unbroken):
    message = both(data, tmp_path / "run", poison, 1)
    assert message.startswith("step 7: loss is nan; first weights that are not finite: model.tables.0.weight;")
    assert "step-00000004 is intact" in message
    goes_on_as_if_nothing_had_been(data, tmp_path / "run", unbroken)


def test_a_full_disk_stops_all_with_one_message(data, tmp_path, unbroken):
    out = tmp_path / "run"
    message = both(data, out, fill_the_disk, 0)
    assert message.startswith(f"{out} cannot be written: [Errno 28] No space left on device; once it can,")
    goes_on_as_if_nothing_had_been(data, out, unbroken)


def test_a_folder_that_cannot_be_made_stops_all_with_one_message(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = both(data, tmp_path / "file" / "run", nothing, 0)
    assert "Not a directory" in message


def test_a_rank_that_hangs_is_named(data, tmp_path, unbroken):
    arguments = (data, tmp_path / "run", hang, None, {})
    first, second = start_ranks(train_in_environment, 2, *arguments, join=False)
    message, error = first.outcome()
    second.process.kill()
    assert error is None
    assert message.startswith("rank 0: ")
    assert "take_step in trainer.py" in message
    assert message.endswith("; no word from rank 1. The last checkpoint stays: start all ranks again")
    goes_on_as_if_nothing_had_been(data, tmp_path / "run", unbroken)
