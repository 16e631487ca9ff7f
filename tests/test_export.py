import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ultramem.export import export
from ultramem.loading import load

STRANGER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(type(model).__name__, model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=2).shape[0])
"""


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "model"
    export(trained, folder)
    return folder


def test_auto_classes_load_the_same_model(trained, exported):
    model, tokenizer = load(trained)
    again, tokenizer_again = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    tokens = tokenizer("The memory reads the row.", return_tensors="pt")["input_ids"]
    assert torch.equal(tokenizer_again("The memory reads the row.", return_tensors="pt")["input_ids"], tokens)
    assert torch.equal(model(tokens).logits, again.eval()(tokens).logits)
    assert tokenizer_again.eos_token_id == tokenizer.eos_token_id


def test_a_stranger_loads_it_with_remote_code(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", STRANGER, str(exported)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UltraMemForCausalLM", "1"]


def test_our_own_commands_load_it(exported):
    model, tokenizer = load(exported)
    assert not model.training
    assert len(tokenizer) == model.config.vocab_size


def test_weights_can_be_halved(trained, tmp_path):
    export(trained, tmp_path / "half", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_nothing_is_overwritten(trained, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        export(trained, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["note"]


def test_a_failed_export_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        export(trained, tmp_path / "model")
    assert not list(tmp_path.iterdir())
