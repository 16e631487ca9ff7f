"""Families of equal compute for one GPU, 15M, 25M and 100M active: dense, mixtures of experts and the memory layers.

Within a family everything is the same but the feed-forward branch and the memory. The forward FLOPs of a token are
equal within 2 percent, reached so: the trunks of models with memory have a smaller feed-forward inner size than the
dense model's; the active experts are together as wide as the dense inner size. The sparse models have about the
same number of parameters, about ten times the dense model's: that is why eight fine-grained experts are chosen of four
times as many as two coarse ones are, and not, as OLMoE chooses them, of 64. `-simple` is UltraMem whose units read and
add at one block of the paper's skip and whose rows are not expanded: at 25M, in runs of three quarters of an epoch, it
ends ahead of the paper's shape (see docs/results.md).
"""

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.recipes.memories import every_block_ultramem_v2, memory_plus, peer, without_skips_and_expansion
from ultramem.recipes.registry import Registry, with_model
from ultramem.train.config import OptimizerConfig, TrainConfig

RECIPES = Registry()


def _gpu_15m(intermediate_size: int) -> TrainConfig:
    return TrainConfig(
        name="gpu-15m",
        model=UltraMemConfig(
            vocab_size=32_000,
            hidden_size=384,
            intermediate_size=intermediate_size,
            num_hidden_layers=8,
            num_attention_heads=6,
            max_position_embeddings=1024,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        steps=2000,
        batch_size=128,
        micro_batch_size=32,
        sequence_length=1024,
        precision="bf16",
        compile=True,
    )


@RECIPES.add("gpu-15m-dense")
def gpu_15m_dense() -> TrainConfig:
    """Dense transformer with 15M active parameters, for one GPU."""
    return _gpu_15m(intermediate_size=1040)


@RECIPES.add("gpu-15m-moe")
def gpu_15m_moe() -> TrainConfig:
    """Mixture of experts, 2 of 32 active, at the compute of gpu-15m-dense."""
    return with_model(gpu_15m_dense(), ffn="moe", num_experts=32, moe_intermediate_size=520)


@RECIPES.add("gpu-15m-moe-fine")
def gpu_15m_moe_fine() -> TrainConfig:
    """Mixture of fine-grained experts, 8 of 128 active, at the compute of gpu-15m-dense."""
    return with_model(gpu_15m_dense(), ffn="moe", num_experts=128, num_experts_per_tok=8, moe_intermediate_size=128)


@RECIPES.add("gpu-15m-pkm")
def gpu_15m_pkm() -> TrainConfig:
    """Product-key memory in its own form, one layer, at the compute of gpu-15m-dense."""
    return with_model(
        _gpu_15m(intermediate_size=792),
        memory="pkm",
        memory_units=["4:4"],
        memory_num_keys=608,
        memory_key_size=576,
        memory_value_size=384,
        memory_top_k=24,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


@RECIPES.add("gpu-15m-ultramem")
def gpu_15m_ultramem() -> TrainConfig:
    """UltraMem, three layers and 156M parameters, at the compute of gpu-15m-dense."""
    return with_model(
        _gpu_15m(intermediate_size=792),
        memory="ultramem",
        memory_units=["1:3", "4:6", "6:8"],
        memory_num_keys=496,
        memory_key_size=96,
        memory_value_size=192,
        memory_top_k=24,
    )


@RECIPES.add("gpu-15m-ultramem-simple")
def gpu_15m_ultramem_simple() -> TrainConfig:
    """UltraMem without skips and expansion, at the compute of gpu-15m-dense."""
    return without_skips_and_expansion(gpu_15m_ultramem(), ["2:2", "5:5", "7:7"], intermediate_size=928)


@RECIPES.add("gpu-15m-memory-plus")
def gpu_15m_memory_plus() -> TrainConfig:
    """Memory+, three layers that share one table, at the compute of gpu-15m-dense."""
    return memory_plus(_gpu_15m(intermediate_size=816), ["2:2", "4:4", "6:6"], num_keys=608, key_size=96, top_k=24)


@RECIPES.add("gpu-15m-ultramem-v2")
def gpu_15m_ultramem_v2() -> TrainConfig:
    """UltraMemV2, a memory in every block, at the compute of gpu-15m-dense."""
    return every_block_ultramem_v2(_gpu_15m(intermediate_size=728), num_keys=304, width=96)


@RECIPES.add("gpu-15m-peer")
def gpu_15m_peer() -> TrainConfig:
    """PEER, one layer of single-neuron experts, at the compute of gpu-15m-dense."""
    return peer(_gpu_15m(intermediate_size=896), "4:4", num_keys=432, key_size=96, num_heads=8)


def _gpu_25m(intermediate_size: int) -> TrainConfig:
    return TrainConfig(
        name="gpu-25m",
        model=UltraMemConfig(
            vocab_size=32_000,
            hidden_size=512,
            intermediate_size=intermediate_size,
            num_hidden_layers=8,
            num_attention_heads=8,
            max_position_embeddings=1024,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        steps=2000,
        batch_size=256,
        micro_batch_size=32,
        sequence_length=1024,
        precision="bf16",
        compile=True,
    )


@RECIPES.add("gpu-25m-dense")
def gpu_25m_dense() -> TrainConfig:
    """Dense transformer with 25M active parameters, for one GPU."""
    return _gpu_25m(intermediate_size=1368)


@RECIPES.add("gpu-25m-moe")
def gpu_25m_moe() -> TrainConfig:
    """Mixture of experts, 2 of 32 active, at the compute of gpu-25m-dense."""
    return with_model(gpu_25m_dense(), ffn="moe", num_experts=32, moe_intermediate_size=680)


@RECIPES.add("gpu-25m-moe-fine")
def gpu_25m_moe_fine() -> TrainConfig:
    """Mixture of fine-grained experts, 8 of 128 active, at the compute of gpu-25m-dense."""
    return with_model(gpu_25m_dense(), ffn="moe", num_experts=128, num_experts_per_tok=8, moe_intermediate_size=168)


@RECIPES.add("gpu-25m-pkm")
def gpu_25m_pkm() -> TrainConfig:
    """Product-key memory in its own form, one layer, at the compute of gpu-25m-dense."""
    return with_model(
        _gpu_25m(intermediate_size=1064),
        memory="pkm",
        memory_units=["4:4"],
        memory_num_keys=704,
        memory_key_size=768,
        memory_value_size=512,
        memory_top_k=24,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


@RECIPES.add("gpu-25m-ultramem")
def gpu_25m_ultramem() -> TrainConfig:
    """UltraMem, three layers and 276M parameters, at the compute of gpu-25m-dense."""
    return with_model(
        _gpu_25m(intermediate_size=1064),
        memory="ultramem",
        memory_units=["1:3", "4:6", "6:8"],
        memory_num_keys=576,
        memory_key_size=128,
        memory_value_size=256,
        memory_top_k=24,
    )


@RECIPES.add("gpu-25m-ultramem-simple")
def gpu_25m_ultramem_simple() -> TrainConfig:
    """UltraMem without skips and expansion, at the compute of gpu-25m-dense."""
    return without_skips_and_expansion(gpu_25m_ultramem(), ["2:2", "5:5", "7:7"], intermediate_size=1232)


@RECIPES.add("gpu-25m-memory-plus")
def gpu_25m_memory_plus() -> TrainConfig:
    """Memory+, three layers that share one table, at the compute of gpu-25m-dense."""
    return memory_plus(_gpu_25m(intermediate_size=1080), ["2:2", "4:4", "6:6"], num_keys=704, key_size=128, top_k=24)


@RECIPES.add("gpu-25m-ultramem-v2")
def gpu_25m_ultramem_v2() -> TrainConfig:
    """UltraMemV2, a memory in every block, at the compute of gpu-25m-dense."""
    return every_block_ultramem_v2(_gpu_25m(intermediate_size=976), num_keys=352, width=128)


@RECIPES.add("gpu-25m-peer")
def gpu_25m_peer() -> TrainConfig:
    """PEER, one layer of single-neuron experts, at the compute of gpu-25m-dense."""
    return peer(_gpu_25m(intermediate_size=1192), "4:4", num_keys=496, key_size=128, num_heads=8)


def _gpu_100m(intermediate_size: int) -> TrainConfig:
    return TrainConfig(
        name="gpu-100m",
        model=UltraMemConfig(
            vocab_size=32_000,
            hidden_size=768,
            intermediate_size=intermediate_size,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=1024,
        ),
        optimizer=OptimizerConfig(learning_rate=6e-4),
        steps=4000,
        batch_size=512,
        micro_batch_size=32,
        sequence_length=1024,
        precision="bf16",
        compile=True,
    )


@RECIPES.add("gpu-100m-dense")
def gpu_100m_dense() -> TrainConfig:
    """Dense transformer with 100M active parameters, for one GPU."""
    return _gpu_100m(intermediate_size=2592)


@RECIPES.add("gpu-100m-moe")
def gpu_100m_moe() -> TrainConfig:
    """Mixture of experts, 2 of 30 active, at the compute of gpu-100m-dense."""
    return with_model(gpu_100m_dense(), ffn="moe", num_experts=30, moe_intermediate_size=1288)


@RECIPES.add("gpu-100m-moe-fine")
def gpu_100m_moe_fine() -> TrainConfig:
    """Mixture of fine-grained experts, 8 of 120 active, at the compute of gpu-100m-dense."""
    return with_model(gpu_100m_dense(), ffn="moe", num_experts=120, num_experts_per_tok=8, moe_intermediate_size=320)


@RECIPES.add("gpu-100m-pkm")
def gpu_100m_pkm() -> TrainConfig:
    """Product-key memory in its own form, one layer, at the compute of gpu-100m-dense."""
    return with_model(
        _gpu_100m(intermediate_size=2216),
        memory="pkm",
        memory_units=["6:6"],
        memory_num_keys=1136,
        memory_key_size=1368,
        memory_value_size=768,
        memory_top_k=32,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


@RECIPES.add("gpu-100m-ultramem")
def gpu_100m_ultramem() -> TrainConfig:
    """UltraMem, three layers and 1.1B parameters, at the compute of gpu-100m-dense."""
    return with_model(
        _gpu_100m(intermediate_size=2216),
        memory="ultramem",
        memory_units=["3:6", "6:9", "9:12"],
        memory_num_keys=928,
        memory_key_size=256,
        memory_value_size=384,
        memory_top_k=32,
    )


@RECIPES.add("gpu-100m-ultramem-simple")
def gpu_100m_ultramem_simple() -> TrainConfig:
    """UltraMem without skips and expansion, at the compute of gpu-100m-dense."""
    return without_skips_and_expansion(gpu_100m_ultramem(), ["4:4", "7:7", "10:10"], intermediate_size=2416)


@RECIPES.add("gpu-100m-memory-plus")
def gpu_100m_memory_plus() -> TrainConfig:
    """Memory+, three layers that share one table, at the compute of gpu-100m-dense."""
    return memory_plus(_gpu_100m(intermediate_size=2296), ["3:3", "6:6", "9:9"], num_keys=1140, key_size=192, top_k=32)


@RECIPES.add("gpu-100m-ultramem-v2")
def gpu_100m_ultramem_v2() -> TrainConfig:
    """UltraMemV2, a memory in every block, at the compute of gpu-100m-dense."""
    return every_block_ultramem_v2(_gpu_100m(intermediate_size=2040), num_keys=464, width=192)


@RECIPES.add("gpu-100m-peer")
def gpu_100m_peer() -> TrainConfig:
    """PEER, one layer of single-neuron experts, at the compute of gpu-100m-dense."""
    return peer(_gpu_100m(intermediate_size=2408), "6:6", num_keys=808, key_size=192, num_heads=8)
