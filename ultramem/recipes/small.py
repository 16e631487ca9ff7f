"""Families of equal compute: dense, mixtures of experts, product keys and UltraMem for a laptop and for one GPU.

Within a family everything is the same but the feed-forward branch and the memory. The forward FLOPs of a token are
equal within 2 percent, reached so: the trunks of product keys and UltraMem have a smaller feed-forward inner size than
the dense model's; the active experts are together as wide as the dense inner size. The sparse models have about the
same number of parameters, about ten times the dense model's: that is why eight fine-grained experts are chosen of four
times as many as two coarse ones are, and not, as OLMoE chooses them, of 64. `cpu-ultramem` has one head of 32 slots
where the paper has two of 42, and rows as wide as the hidden size: in a run of minutes this learns fastest (see
docs/results.md).
"""

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.recipes.registry import Registry, with_model
from ultramem.train.config import OptimizerConfig, TrainConfig

RECIPES = Registry()


def _cpu(intermediate_size: int) -> TrainConfig:
    return TrainConfig(
        name="cpu",
        model=UltraMemConfig(
            vocab_size=4096,
            hidden_size=128,
            intermediate_size=intermediate_size,
            num_hidden_layers=6,
            num_attention_heads=4,
            max_position_embeddings=256,
        ),
        optimizer=OptimizerConfig(learning_rate=8e-3, warmup_steps=10),
        steps=400,
        batch_size=8,
        sequence_length=256,
        evaluate_every_steps=40,
        evaluate_batches=16,
        checkpoint_every_steps=80,
        log_every_steps=4,
    )


@RECIPES.add("cpu-dense")
def cpu_dense() -> TrainConfig:
    """Dense transformer with 1.4M active parameters, for two CPU cores and three minutes."""
    return _cpu(intermediate_size=456)


@RECIPES.add("cpu-moe")
def cpu_moe() -> TrainConfig:
    """Mixture of experts, 2 of 26 active, at the compute of cpu-dense."""
    return with_model(cpu_dense(), ffn="moe", num_experts=26, moe_intermediate_size=224)


@RECIPES.add("cpu-moe-fine")
def cpu_moe_fine() -> TrainConfig:
    """Mixture of fine-grained experts, 8 of 112 active, at the compute of cpu-dense."""
    return with_model(cpu_dense(), ffn="moe", num_experts=112, num_experts_per_tok=8, moe_intermediate_size=52)


@RECIPES.add("cpu-pkm")
def cpu_pkm() -> TrainConfig:
    """Product-key memory in its own form, one layer, at the compute of cpu-dense."""
    return with_model(
        _cpu(intermediate_size=320),
        memory="pkm",
        memory_units=["3:3"],
        memory_num_keys=314,
        memory_key_size=180,
        memory_value_size=128,
        memory_top_k=16,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


@RECIPES.add("cpu-ultramem")
def cpu_ultramem() -> TrainConfig:
    """UltraMem, three layers, at the compute of cpu-dense."""
    return with_model(
        _cpu(intermediate_size=272),
        memory="ultramem",
        memory_units=["1:2", "3:4", "5:6"],
        memory_num_keys=181,
        memory_key_size=64,
        memory_value_size=128,
        memory_num_heads=1,
        memory_top_k=32,
    )


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
