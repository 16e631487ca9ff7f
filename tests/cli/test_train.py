import json

import pytest

from ultramem.cli import main


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
