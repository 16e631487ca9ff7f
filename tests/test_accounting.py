import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ultramem import accounting
from ultramem.layers.tables import Table
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.models.modeling_ultramem import UltraMemForCausalLM

TRUNK = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
MEMORY = {
    "memory_units": ["1:2", "3:3"],
    "memory_num_keys": 6,
    "memory_key_size": 8,
    "memory_value_size": 8,
    "memory_top_k": 3,
}
PKM = {"memory": "pkm", "memory_expansion": 1, "memory_query_conv_size": 0, **MEMORY}
V2 = {"memory": "ultramem_v2", "memory_pre_value_size": 5, **MEMORY}
MODELS = {
    "swiglu": {},
    "gelu": {"ffn": "gelu"},
    "grouped attention, wide heads, norms": {"num_key_value_heads": 2, "head_dim": 8, "attention_qk_norm": True},
    "tied": {"tie_word_embeddings": True},
    "moe": {"ffn": "moe", "num_experts": 5, "moe_intermediate_size": 8},
    "mixed, shared expert": {"ffn": ["gelu", "moe", "swiglu"], "num_experts": 4, "num_shared_experts": 1},
    "ultramem": {"memory": "ultramem", **MEMORY},
    "ultramem, rank 4, E 9": {"memory": "ultramem", **MEMORY, "memory_tucker_rank": 4, "memory_expansion": 9},
    "ultramem, E 1, no convolution": {
        "memory": "ultramem",
        **MEMORY,
        "memory_expansion": 1,
        "memory_value_size": 16,
        "memory_query_conv_size": 0,
    },
    "pkm": {**PKM, "memory_value_size": 16},
    "pkm, half values": PKM,
    "pkm, shared query, norms, expansion": {
        **PKM,
        "memory_shared_query": True,
        "memory_qk_norm": True,
        "memory_expansion": 4,
    },
    "ultramem, ring": {"memory": "ultramem", **MEMORY, "memory_sharing": "ring", "memory_window": 2},
    "ultramem_v2": {**V2, "memory_expansion": 9},
    "ultramem_v2, block, no convolution": {
        **V2,
        "memory_sharing": "block",
        "memory_window": 2,
        "memory_query_conv_size": 0,
        "memory_tucker_rank": 3,
        "memory_num_cores": 1,
    },
    "memory_plus, one table": {**PKM, "memory": "memory_plus", "memory_sharing": "all"},
    "peer": {**PKM, "memory": "peer", "memory_value_size": 16},
    "peer, norms": {**PKM, "memory": "peer", "memory_value_size": 16, "memory_qk_norm": True},
}


@pytest.fixture(params=MODELS, name="config")
def every_config(request):
    return UltraMemConfig(**TRUNK, **MODELS[request.param])


def test_counts_are_the_models(config):
    model = UltraMemForCausalLM(config)
    embeddings = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    tables = [module.weight for module in model.modules() if isinstance(module, Table)]

    count = accounting.count_parameters(config)

    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.embeddings == sum(weight.numel() for weight in embeddings)
    assert count.tables == sum(weight.numel() for weight in tables)
    attention = (
        module for name, module in model.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))
    )
    assert count.attention == sum(module.weight.numel() for module in attention)


def test_active_parameters_are_all_but_unread_rows_and_unchosen_experts(config):
    count, active = accounting.count_parameters(config), accounting.count_active_parameters(config)
    assert (active.attention, active.memory, active.vectors) == (count.attention, count.memory, count.vectors)
    gate_width = {"ultramem_v2": 5, "peer": 16}.get(config.memory, 0)
    assert active.tables == len(config.memory_units) * 2 * 3 * ((config.memory_value_size or 0) + gate_width)
    if "moe" not in config.block_ffns:
        assert active.ffn == count.ffn


def test_active_experts():
    config = UltraMemConfig(**TRUNK, **MODELS["moe"])
    count, active = accounting.count_parameters(config), accounting.count_active_parameters(config)
    assert count.ffn - active.ffn == 3 * (5 - 2) * 3 * 16 * 8  # layers, unchosen experts, matrices of one


@pytest.mark.parametrize(
    "name", ["swiglu", "gelu", "grouped attention, wide heads, norms", "moe", "mixed, shared expert"]
)
def test_flops_are_what_torch_counts(name):
    config = UltraMemConfig(**TRUNK, **MODELS[name])
    config._attn_implementation = "eager"  # torch does not count what the fused one does on a CPU
    model = UltraMemForCausalLM(config).eval()
    length = 32
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randint(50, (1, length)), use_cache=False)

    flops = accounting.count_flops(config, length)

    # Torch counts attention over the whole square, we count the causal half of it.
    whole_square = config.num_hidden_layers * 4 * length * config.num_attention_heads * config.head_dim
    assert counter.get_total_flops() == length * (flops.matrices + flops.head + whole_square)
    assert flops.attention == whole_square * (length + 1) / (2 * length)


def test_retrieval_by_hand():
    config = UltraMemConfig(**TRUNK, **MODELS["ultramem"])
    convolution = 2 * 4 * 16
    candidate_scores = 2 * 2 * (2 * 3) * 8  # heads, candidates of two sides, key width
    grid = 2 * 2 * (3 * 2 * 2 + 3 * 3 * 2)  # heads, (rows through the core) + (grid of candidates)
    core_values = 2 * 2 * 2 * 3 * (2 * 2 + 2)  # heads, cores, slots
    pooling = 2 * 2 * 3 * 8
    by_hand = 2 * (convolution + candidate_scores + grid + core_values + pooling)
    assert accounting.count_flops(config, 32).retrieval == by_hand


def test_the_open_ultramem_v2_has_the_papers_size():
    """1.18B parameters without embeddings; 225M active ones with the output head, rows read counted."""
    config = UltraMemConfig(
        vocab_size=50_304,
        hidden_size=768,
        intermediate_size=2496,
        num_hidden_layers=20,
        num_attention_heads=12,
        memory="ultramem_v2",
        memory_units=[f"{block}:{block}" for block in range(1, 21)],
        memory_num_keys=360,
        memory_key_size=192,
        memory_pre_value_size=192,
        memory_value_size=192,
        memory_top_k=32,
        memory_num_heads=1,
        memory_expansion=1,
        memory_query_conv_size=0,
    )
    count, active = accounting.count_parameters(config), accounting.count_active_parameters(config)
    assert count.tables == 20 * 360**2 * (192 + 192)
    assert count.memory == 20 * 2 * (2 * 192) * (768 + 360) + 20 * 768 * (192 + 192)
    assert count.without_embeddings == pytest.approx(1.18e9, rel=0.005)
    assert active.without_embeddings + 50_304 * 768 == pytest.approx(225e6, rel=0.005)


def test_peers_heads_share_keys():
    """A product with the one set of keys for each of the queries."""
    flops = [
        accounting.count_flops(UltraMemConfig(**TRUNK, **MODELS["peer"], memory_num_heads=heads), 32).per_token
        for heads in (1, 2, 3)
    ]
    assert flops[2] - flops[1] == flops[1] - flops[0]


def test_no_memory_no_retrieval():
    assert accounting.count_flops(UltraMemConfig(**TRUNK), 32).retrieval == 0


def test_bytes_by_hand():
    config = UltraMemConfig(**TRUNK, num_key_value_heads=2)
    model = UltraMemForCausalLM(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cache = 3 * 2 * (2 * 4) * 10 * 2  # layers, keys and values, heads and width, tokens, bytes

    assert accounting.training_bytes(config) == 16 * parameters
    assert accounting.cache_bytes(config, context=10) == cache
    assert accounting.inference_bytes(config, context=10) == 2 * parameters + cache
    unread_embeddings = 49 * 16
    assert accounting.bytes_read_per_token(config, context=10) == 2 * (parameters - unread_embeddings) + cache


def test_nothing_is_allocated_for_the_largest():
    config = UltraMemConfig(
        hidden_size=8192,
        num_attention_heads=64,
        num_hidden_layers=80,
        **{**MEMORY, "memory": "ultramem", "memory_num_keys": 100_000},
    )
    assert accounting.count_parameters(config).tables == 2 * 100_000**2 * 8
