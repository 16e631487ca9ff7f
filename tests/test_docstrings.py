"""The examples in docstrings run, but for those that show a user's own folders and tokenizers."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import ultramem
from ultramem import UltraMemConfig, UltraMemForCausalLM, UltraMemModel, recipes

USERS_OWN = ("DecodeGraph(", "data/", "runs/", "hf/", "data=", "corpus", "run_folder", "folder)", "tokenizer")


def names():
    """What examples take for granted: torch, the public names, a small model, its memory layer and table."""
    config = UltraMemConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        memory="ultramem",
        memory_units=["1:2"],
        memory_num_keys=8,
        memory_key_size=8,
        memory_value_size=8,
        memory_top_k=4,
    )
    model = UltraMemForCausalLM(config)
    return {
        "torch": torch,
        "UltraMemConfig": UltraMemConfig,
        "UltraMemForCausalLM": UltraMemForCausalLM,
        "UltraMemModel": UltraMemModel,
        "recipes": recipes,
        "model": model,
        "layer": model.model.memory_layers[0],
        "table": model.model.tables[0],
    }


def examples():
    """Every docstring with an example that needs no file and no GPU, as `(name, doctest)`."""
    given = names()
    for module_info in pkgutil.walk_packages(ultramem.__path__, "ultramem."):
        if module_info.name.endswith(("__main__", "kernels")):
            continue
        try:
            module = importlib.import_module(module_info.name)
        except ModuleNotFoundError as error:  # a machine that runs the GPU tests alone lacks the command line's parser
            if error.name != "tyro":
                raise
            continue
        for test in doctest.DocTestFinder().find(module, extraglobs=given):
            sources = "".join(example.source for example in test.examples)
            if sources and not any(mark in sources for mark in USERS_OWN):
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("example", examples())
def test_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0
