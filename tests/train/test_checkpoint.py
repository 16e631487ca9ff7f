import shutil

import pytest
import torch

from tests.train.tiny import tiny_config
from ultramem.train.checkpoint import CheckpointError, load_model
from ultramem.train.trainer import train


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("checkpoint") / "run"
    train(tiny_config(steps=8, checkpoint_every_steps=4), data, out)
    return out


def test_the_newest_model_of_a_run_is_loaded_and_exported_and_loaded_again(run, tmp_path):
    model, tokenizer = load_model(run)
    assert not model.training
    assert tokenizer.is_file()
    tokens = torch.arange(10)[None]
    exported = tmp_path / "exported"
    model.save_pretrained(exported)
    shutil.copy(tokenizer, exported)
    again, tokenizer = load_model(exported)
    assert torch.equal(model(tokens).logits, again(tokens).logits)
    assert tokenizer == exported / "tokenizer.json"


def test_a_damaged_newest_checkpoint_is_never_passed_over_in_silence(run, data, tmp_path):
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    (file,) = damaged.glob("checkpoints/step-00000008/*.distcp")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="step-00000008 is damaged"):
        load_model(damaged)
    (damaged / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="remove that folder to go on from step 4"):
        train(tiny_config(steps=8, checkpoint_every_steps=4), data, damaged)
    shutil.rmtree(damaged / "checkpoints" / "step-00000008")
    train(tiny_config(steps=8, checkpoint_every_steps=4), data, damaged)
    expected, ours = load_model(run)[0].state_dict(), load_model(damaged)[0].state_dict()
    assert all(torch.equal(expected[name], ours[name]) for name in expected)


def test_a_damaged_newest_checkpoint_is_passed_over_where_that_is_asked_for(run, data, tmp_path, capsys):
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    (damaged / "checkpoints" / "step-00000008" / "manifest.json").unlink()
    (damaged / "summary.json").unlink()
    train(tiny_config(steps=8, checkpoint_every_steps=4, skip_damaged_checkpoints=True), data, damaged)
    assert "set aside" in capsys.readouterr().err
    assert sorted(path.name for path in (damaged / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000008",
        "step-00000008.damaged",
    ]
    expected, ours = load_model(run)[0].state_dict(), load_model(damaged)[0].state_dict()
    assert all(torch.equal(expected[name], ours[name]) for name in expected)


def test_checkpoints_written_in_the_background_are_the_same(run, data, tmp_path):
    config = tiny_config(steps=8, checkpoint_every_steps=4, checkpoint_in_background=True)
    train(config, data, tmp_path / "run")
    expected, ours = (
        {path.name: path.read_bytes() for path in (folder / "checkpoints").rglob("*.distcp")}
        for folder in (run, tmp_path / "run")
    )
    assert expected == ours


def test_what_is_no_model_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="neither a run's folder nor an exported model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama'"):
        load_model(tmp_path)
    begun = tmp_path / "begun"
    shutil.copytree(run, begun, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ValueError, match="no checkpoint yet"):
        load_model(begun)
