"""Saved folders: safetensors, Auto classes, dtypes, and what a checkpoint lacks."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from ultramem import UltraMemForCausalLM


def test_a_saved_model_comes_back_whole(build, tokens, member, tmp_path):
    model = build(member)
    model.save_pretrained(tmp_path)
    loaded, report = UltraMemForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    # Read from a file, tensors lie at other addresses, and BLAS's dot products add up in another order.
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_tables_are_in_the_safetensors_file(build, tmp_path):
    model = build("ultramem")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for unit, table in enumerate(model.model.tables):
            assert torch.equal(file.get_tensor(f"model.tables.{unit}.weight"), table.weight)


def test_the_sign_of_the_filter_survives_saving(build, tokens, tmp_path):
    model = build("ultramem")
    with torch.no_grad():  # continuously to cores whose own singular vectors would be chosen with the other sign
        for layer in model.model.memory_layers:
            for _ in range(8):
                layer.retrieval.cores.sub_(0.25)
                layer.retrieval.refresh()
    assert any((layer.retrieval.left_vectors[..., 0].sum(-1) < 0).any() for layer in model.model.memory_layers)
    model.save_pretrained(tmp_path)
    loaded = UltraMemForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(dict(loaded.named_buffers()), dict(model.named_buffers()), rtol=0, atol=0)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_tied_embeddings_stay_tied(build, tokens, tmp_path):
    model = build("ultramem", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = UltraMemForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("name", ["moe", "pkm-ladder", "ultramem", "ultramem-v2-ring", "memory-plus", "peer"])
def test_a_model_loads_in_bfloat16(build, tokens, name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded = UltraMemForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        low, exact = loaded(tokens, labels=tokens), model(tokens, labels=tokens)
    assert abs(low.loss - exact.loss) < 0.1
    assert loaded.generate(tokens, max_new_tokens=3).shape == (3, 14)


def test_memory_added_to_a_dense_checkpoint_begins_as_it_would_anew(build, tmp_path):
    dense = build("dense")
    dense.save_pretrained(tmp_path)
    fresh = build("ultramem")
    torch.manual_seed(5)
    grown, report = UltraMemForCausalLM.from_pretrained(tmp_path, config=fresh.config, output_loading_info=True)
    assert all("memory_layers" in name or "tables" in name for name in report["missing_keys"])
    for name, tensor in grown.state_dict().items():
        if name in dense.state_dict():
            assert torch.equal(tensor, dense.state_dict()[name]), name
        else:
            expected = fresh.state_dict()[name].square().mean().sqrt().item()
            assert tensor.square().mean().sqrt().item() == pytest.approx(expected, rel=0.5), name


def test_auto_classes_load_a_saved_folder_in_a_fresh_process(build, tokens, tmp_path):
    model = build("ultramem")
    model.save_pretrained(tmp_path)
    script = f"""
import torch, ultramem
ultramem.UltraMemForCausalLM
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
assert type(AutoConfig.from_pretrained({str(tmp_path)!r})) is ultramem.UltraMemConfig
assert type(AutoModel.from_pretrained({str(tmp_path)!r})) is ultramem.UltraMemModel
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
assert type(model) is ultramem.UltraMemForCausalLM
print(model(torch.tensor({tokens.tolist()})).logits.double().sum().item())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(model(tokens).logits.double().sum().item(), abs=1e-3)
