import dataclasses
import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from ultramem.export import AUTO_MAP, REMOTE_CODE, export
from ultramem.loading import load
from ultramem.models import UltraMemConfig, UltraMemForCausalLM
from ultramem.train import checkpoint_pieces
from ultramem.train.checkpoint import Checkpoints

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_file_bytes", [10**9, 20_000])
def test_it_is_what_transformers_would_write_with_the_model_in_memory(trained, tmp_path, dtype, max_file_bytes):
    export(trained, tmp_path / "ours", dtype, max_file_bytes=max_file_bytes)
    model, tokenizer = load(trained)
    model.config.auto_map = AUTO_MAP
    model.to(dtype).save_pretrained(tmp_path / "theirs", max_shard_size=max_file_bytes)
    tokenizer.save_pretrained(tmp_path / "theirs")
    ours, theirs = ({file.name: file for file in (tmp_path / who).iterdir()} for who in ("ours", "theirs"))
    assert ours.keys() - REMOTE_CODE.keys() == theirs.keys()
    assert ("model.safetensors.index.json" in ours) == (max_file_bytes == 20_000)
    for name in theirs:
        if name.endswith(".json"):
            our_values, their_values = (json.loads(files[name].read_text()) for files in (ours, theirs))
            if "index" in name:
                del their_values["metadata"]["total_parameters"]
            assert our_values == their_values, name
            continue
        with safe_open(ours[name], "pt") as our_file, safe_open(theirs[name], "pt") as their_file:
            assert our_file.metadata() == their_file.metadata()
            assert sorted(our_file.keys()) == sorted(their_file.keys())
            for key in our_file.keys():  # noqa: SIM118
                torch.testing.assert_close(our_file.get_tensor(key), their_file.get_tensor(key), rtol=0, atol=0)


def test_tied_weights_are_stored_once(trained, tmp_path):
    run = write_run(trained, tmp_path / "run", tie_word_embeddings=True)
    export(run, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    tokens = torch.arange(9)[None]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(model(tokens).logits, load(run)[0](tokens).logits)


def write_run(trained, folder, **changes):
    """The folder of a run whose only checkpoint holds a fresh model."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints"))
    config = dataclasses.replace(UltraMemConfig.from_pretrained(trained), **changes)
    config.save_pretrained(folder)
    Checkpoints(folder / "checkpoints").save(1, {"model": UltraMemForCausalLM(config).state_dict()})
    return folder


WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import ultramem.export, ultramem.loading
run, out = map(Path, sys.argv[1:])
in_use = next(line.split() for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(in_use[1]) + (24 << 20), resource.RLIM_INFINITY))
ultramem.export.export(run, out)
try:
    ultramem.loading.load(run)
except (MemoryError, RuntimeError) as error:
    print("in memory:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: its limit on a process's own memory")
def test_a_table_larger_than_memory_is_exported(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_pieces, "PIECE_BYTES", 1 << 20)
    run = write_run(trained, tmp_path / "run", memory_num_keys=1024, memory_value_size=16)
    out = tmp_path / "model"
    arguments = [sys.executable, "-c", WITH_LITTLE_MEMORY, str(run), str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "model.safetensors").stat().st_size > 64 << 20
    assert "in memory: " in done.stdout
    ours, expected = load(out)[0].state_dict(), load(run)[0].state_dict()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_an_exported_model_is_not_exported_again(exported, tmp_path):
    with pytest.raises(ValueError, match="an exported model already"):
        export(exported, tmp_path / "again")


def test_nothing_is_overwritten(trained, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        export(trained, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["note"]


def test_a_full_disk_is_found_before_a_weight_is_written_and_leaves_nothing(trained, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(ValueError, match=r"cannot write .*model: File too large\. Nothing was left there"):
            export(trained, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
    with pytest.raises(ValueError, match=r"cannot write .*model: No space left on device\. Nothing was left there"):
        export(trained, tmp_path / "model")
    assert not list(tmp_path.iterdir())
