import json
import signal
from pkgutil import resolve_name

import pytest

from ultramem.cli import main
from ultramem.train.journal import read_journal


@pytest.fixture
def command(prepared, tmp_path, tiny_settings):
    out = tmp_path / "run"
    return out, ["train", "cpu-ultramem", "--data", str(prepared), "--out", str(out), "--config", str(tiny_settings)]


def test_a_run_records_what_was_resolved(command, capsys):
    out, arguments = command
    assert main([*arguments, "--steps", "3", "--optimizer.learning-rate", "1e-4"]) == 0
    recorded = json.loads((out / "run.json").read_text())
    assert recorded["steps"] == 3
    assert recorded["batch_size"] == 4  # from --config
    assert recorded["optimizer"]["learning_rate"] == 1e-4
    assert recorded["model"]["memory"] == "ultramem"  # from the recipe
    assert recorded["model"]["vocab_size"] == 300  # from the data


def test_another_models_folder_is_left_alone(command, capsys):
    out, arguments = command
    assert main(arguments) == 0
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    capsys.readouterr()

    assert main([*arguments, "--model.intermediate-size", "24"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "intermediate_size" in line
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_a_stopped_run_is_not_a_success(command, monkeypatch):
    monkeypatch.setattr("ultramem.cli.train.train", lambda *args, **options: {"status": "stopped at step 2"})
    assert main(command[1]) == 130


@pytest.mark.parametrize(
    "moment",
    [
        "ultramem.train.checkpoint_files.write_folder",  # before anything is written
        "ultramem.train.checkpoint_pieces.PiecewiseSavePlanner.resolve_data",  # between two tensors
        "ultramem.train.checkpoint_files.sync_folder",  # once the checkpoint has its name
    ],
)
def test_a_second_ctrl_c_while_a_checkpoint_is_written_is_quiet_and_damages_nothing(
    command, monkeypatch, capfd, moment
):
    out, arguments = command
    arguments += ["--checkpoint-every-steps", "2"]
    real = resolve_name(moment)

    def pressed(*values, **named):
        if (out / "checkpoints" / "step-00000002").exists():
            signal.raise_signal(signal.SIGINT)  # asks
            signal.raise_signal(signal.SIGINT)  # acts at once
        return real(*values, **named)

    with monkeypatch.context() as patched:
        patched.setattr(moment, pressed)
        assert main(arguments) == 130
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "Error" not in said
    assert main(arguments) == 0
    assert [line["step"] for line in read_journal(out / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]
    assert not list(out.rglob("*.tmp"))
