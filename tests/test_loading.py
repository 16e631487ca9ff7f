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


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load(tmp_path)
