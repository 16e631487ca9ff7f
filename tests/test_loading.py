import shutil

import pytest

from ultramem.loading import load


def test_a_run_gives_its_model_and_tokenizer(trained):
    model, tokenizer = load(trained)
    assert not model.training
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.decode(tokenizer("The memory reads.")["input_ids"]) == "The memory reads."


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)


def test_a_run_without_tokenizer_is_refused(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        load(run)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "data.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_file_of_a_run_is_named_and_says_what_to_do(trained, tmp_path, name, content):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*the same `ultramem train` command writes it"):
        load(run)


def test_a_run_without_data_json_says_what_is_missing(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "data.json").unlink()
    with pytest.raises(ValueError, match=r"data\.json is missing"):
        load(run)


def test_a_device_that_is_not_there_is_refused_with_those_that_are(trained):
    for device in ("gpu", "cuda:77"):
        with pytest.raises(ValueError, match=rf"device is '{device}': choose from cpu"):
            load(trained, device=device)
    assert load(trained, device="cpu")[0].device.type == "cpu"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load(tmp_path)
