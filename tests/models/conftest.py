from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ultramem import UltraMemConfig, UltraMemForCausalLM

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MEMORY = {"memory_num_keys": 12, "memory_key_size": 8, "memory_value_size": 16, "memory_top_k": 4}
V2 = {
    **MEMORY,
    "memory": "ultramem_v2",
    "memory_units": ["1:1", "2:2", "3:3", "4:4"],
    "memory_pre_value_size": 12,
}
PEER = {**MEMORY, "memory": "peer", "memory_expansion": 1}
FAMILY = {
    "dense": {},
    "gelu": {"ffn": "gelu", "attention_qk_norm": True},
    "moe": {"ffn": "moe", "num_experts": 5, "moe_intermediate_size": 24, "num_shared_experts": 1},
    "pkm": {
        **MEMORY,
        "memory": "pkm",
        "memory_units": ["2:2"],
        "memory_value_size": 32,
        "memory_expansion": 1,
        "memory_query_conv_size": 0,
    },
    "pkm-ladder": {
        **MEMORY,
        "memory": "pkm",
        "memory_units": ["1:2", "3:4"],
        "memory_softmax": False,
        "memory_shared_query": True,
        "memory_qk_norm": True,
    },
    "ultramem": {**MEMORY, "memory": "ultramem", "memory_units": ["1:3", "2:4", "4:4"]},
    "ultramem-moe": {
        **MEMORY,
        "memory": "ultramem",
        "memory_units": ["2:3"],
        "memory_improved_init": False,
        "ffn": ["swiglu", "moe", "gelu", "moe"],
        "num_experts": 3,
    },
    "ultramem-ring": {
        **MEMORY,
        "memory": "ultramem",
        "memory_units": ["1:3", "2:4", "4:4"],
        "memory_sharing": "ring",
        "memory_window": 2,
    },
    "ultramem-v2": {**V2, "memory_query_conv_size": 0, "memory_num_heads": 1},
    "ultramem-v2-ring": {
        **V2,
        "memory_sharing": "ring",
        "memory_window": 3,
        "memory_num_heads": 2,
        "memory_expansion": 1,
        "memory_tucker_penalty": 0.01,
        "memory_balance_coef": 0.01,
    },
    "memory-plus": {
        **MEMORY,
        "memory": "memory_plus",
        "memory_units": ["1:1", "3:3"],
        "memory_sharing": "all",
        "memory_value_size": 32,
        "memory_expansion": 1,
        "memory_query_conv_size": 0,
    },
    "peer": {**PEER, "memory_units": ["2:2"], "memory_query_conv_size": 0},
    "peer-block": {
        **PEER,
        "memory_units": ["1:1", "2:2", "3:3", "4:4"],
        "memory_sharing": "block",
        "memory_window": 2,
        "memory_qk_norm": True,
        "memory_activation": None,
    },
}


@pytest.fixture
def build():
    """Makes a small member of the family by its name, in evaluation mode, the same at every call."""

    def make(name: str, **changes) -> UltraMemForCausalLM:
        settings = {**SIZES, **FAMILY[name], **changes}
        if settings.get("memory") == "peer":  # an expert is as wide as the hidden states
            settings["memory_value_size"] = settings["hidden_size"]
        torch.manual_seed(0)
        return UltraMemForCausalLM(UltraMemConfig(**settings)).eval()

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(1, 61, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=FAMILY)
def member(request) -> str:
    return request.param


@pytest.fixture
def graphs(monkeypatch):
    """Counts what is compiled, without generating code; a graph break is an error."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True, backend=counter))
    return counter
