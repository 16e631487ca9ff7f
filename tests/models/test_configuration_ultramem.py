import json

import pytest

from ultramem import UltraMemConfig

MEMORY = {
    "memory": "ultramem",
    "memory_units": ["3:7"],
    "memory_num_keys": 8,
    "memory_key_size": 8,
    "memory_value_size": 8,
    "memory_top_k": 4,
}
PEER = {**MEMORY, "memory": "peer", "memory_value_size": 512, "memory_expansion": 1}
SHARED = {**MEMORY, "memory_units": ["1:1", "2:2", "3:3"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory_topk": 3}, "memory_topk=3: did you mean memory_top_k"),
        ({"num_layers": 3}, "num_layers=3: did you mean num_hidden_layers"),
        ({"zzz": 3}, "unknown field zzz=3"),
        ({"layer_types": ["hybrid"]}, "unknown field layer_types"),
        ({"hidden_size": 0}, "'hidden_size': .* positive integer, got 0"),
        ({"hidden_size": "64"}, "'hidden_size' expected int, got str .*'64'"),
        ({"hidden_size": 65}, "hidden_size=65 .* num_attention_heads=8"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"num_key_value_heads": 3}, "num_attention_heads=8 .* num_key_value_heads=3"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
        ({"ffn": "relu"}, "ffn='relu' .* swiglu, gelu, moe"),
        ({"ffn": ["gelu"] * 3}, "ffn lists 3 branches for num_hidden_layers=8"),
        ({"ffn": "moe", "num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok=5 .* num_experts=4"),
        ({"num_shared_experts": -1}, "num_shared_experts=-1"),
        ({**MEMORY, "memory": None}, r"memory=None with memory_units=\['3:7'\]"),
        ({**MEMORY, "memory_units": []}, r"memory='ultramem' with memory_units=\[\]"),
        ({**MEMORY, "memory": "ultra"}, "memory='ultra' .* ultramem, ultramem_v2, pkm, memory_plus, peer"),
        ({**MEMORY, "memory_units": ["7:3"]}, "'7:3', which points backwards: write '3:7'"),
        ({**MEMORY, "memory_units": ["0:3"]}, "'0:3': blocks are counted from 1 to num_hidden_layers=8"),
        ({**MEMORY, "memory_units": ["3:9"]}, "'3:9': blocks are counted from 1 to num_hidden_layers=8"),
        ({**MEMORY, "memory_units": ["3-7"]}, "'3-7': write the two blocks of a unit like '3:7'"),
        ({**MEMORY, "memory_units": ["3:7", "3:4"]}, "'3:7' and '3:4': only one unit may read at a block"),
        ({**MEMORY, "memory_top_k": None}, "needs memory_top_k, which is None"),
        ({**MEMORY, "memory_num_keys": None}, "needs memory_num_keys, which is None"),
        ({**MEMORY, "memory_expansion": 5}, "memory_expansion=5 is not a square: give 4 or 9"),
        ({**MEMORY, "memory_top_k": 257}, "memory_top_k=257 is more than the 256 slots that 16 logical keys"),
        ({**MEMORY, "memory_num_keys": 99, "memory_top_k": 16385}, "more than the 16384 slots .* at most 128 a side"),
        ({**MEMORY, "memory_query_conv_size": -1}, "memory_query_conv_size=-1"),
        ({**MEMORY, "memory_tucker_rank": 3}, "memory_key_size=8 .* memory_tucker_rank=3"),
        ({**MEMORY, "memory_num_cores": 3}, "memory_value_size=8 .* memory_num_cores=3"),
        ({**MEMORY, "memory_softmax": False}, "memory_softmax=False has no meaning for memory='ultramem'"),
        ({**MEMORY, "memory": "pkm", "memory_num_cores": 4}, "memory_num_cores=4 has no meaning for memory='pkm'"),
        ({**MEMORY, "memory_pre_value_size": 4}, "memory_pre_value_size=4 has no .* use memory='ultramem_v2'"),
        ({**MEMORY, "memory": "ultramem_v2"}, "memory='ultramem_v2' needs memory_pre_value_size"),
        ({**PEER, "memory_value_size": 8}, "memory_value_size=8 with memory='peer': .* hidden_size=512"),
        ({**MEMORY, "memory": "memory_plus"}, "memory_expansion=4 has no meaning for memory='memory_plus': give 1"),
        ({**PEER, "memory_activation": "tanh"}, "memory_activation='tanh' is unknown: choose from gelu, relu, None"),
        ({**MEMORY, "memory_sharing": "pool"}, "memory_sharing='pool' is unknown: choose from own, ring, block, all"),
        ({**MEMORY, "memory_window": 2}, "memory_window=2 has no meaning for memory_sharing='own'"),
        ({**MEMORY, "memory_sharing": "ring", "memory_window": 2}, "memory_window=2 is more than the 1 memory_units"),
        ({**SHARED, "memory_sharing": "block", "memory_window": 2}, "memory_window=2 does not divide the 3"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_that_names_it(arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        UltraMemConfig(**arguments)
    assert "\n" not in str(refused.value)


def test_fields_that_follow_from_others_are_filled():
    config = UltraMemConfig(hidden_size=96, num_attention_heads=6, intermediate_size=200)
    assert (config.head_dim, config.num_key_value_heads, config.moe_intermediate_size) == (16, 6, 200)
    assert UltraMemConfig(hidden_size=65, head_dim=16).head_dim == 16
    assert UltraMemConfig(rope_theta=5e5).rope_parameters == {"rope_type": "default", "rope_theta": 5e5}


def test_units_are_counted_from_one_as_in_the_paper():
    config = UltraMemConfig(**{**MEMORY, "memory_units": ["3:7", "8:8"]})
    assert config.memory_unit_blocks == [(2, 6), (7, 7)]


def test_blocks_that_a_convolution_reads_have_its_state_in_the_cache():
    config = UltraMemConfig(**{**MEMORY, "memory_units": ["3:7", "8:8"]})
    assert [block for block, kind in enumerate(config.layer_types) if kind == "hybrid"] == [2, 7]
    for without in ({**MEMORY, "memory_query_conv_size": 0}, {**MEMORY, "memory_query_conv_size": 1}, {}):
        assert set(UltraMemConfig(**without).layer_types) == {"full_attention"}


def test_a_saved_configuration_comes_back(tmp_path):
    config = UltraMemConfig(**MEMORY, ffn=["gelu"] * 8, dtype="bfloat16", architectures=["UltraMemForCausalLM"])
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {"transformers_version", "dtype", "architectures", "model_type"} <= saved.keys()
    loaded = UltraMemConfig.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert UltraMemConfig(**loaded.to_dict()).to_diff_dict() == config.to_diff_dict()


def test_a_saved_configuration_with_an_unknown_field_is_refused(tmp_path):
    UltraMemConfig(**MEMORY).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "memory_topk": 3}))
    with pytest.raises(ValueError, match="unknown field memory_topk=3"):
        UltraMemConfig.from_pretrained(tmp_path)
