"""The open models of UltraMemV2 (arXiv 2508.18756): 227M active parameters and 1.2B in all, and 1B of 7B.

Those of 227M share one trunk of 20 layers: SwiGLU, rotary positions, normalised queries and keys, tied embeddings.
Inner sizes and the blocks of the memories come from the authors' released scripts, which count blocks from 0. The
paper's figures count differently: active parameters (225M to 227M) with the embeddings, all (1.18B) without them.
"""

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.recipes.memories import every_block_ultramem_v2
from ultramem.recipes.registry import Registry, with_model
from ultramem.train.config import OptimizerConfig, TrainConfig

RECIPES = Registry()

SEQUENCE_LENGTH = 4096
BATCH_SIZE = 768
STEPS = 158_946  # half a trillion tokens
WARMUP_STEPS = 3179  # ten billion tokens
VOCABULARY = 50_304


def _trunk(intermediate_size: int) -> TrainConfig:
    return TrainConfig(
        name="trunk",
        model=UltraMemConfig(
            vocab_size=VOCABULARY,
            hidden_size=768,
            intermediate_size=intermediate_size,
            num_hidden_layers=20,
            num_attention_heads=12,
            max_position_embeddings=SEQUENCE_LENGTH,
            attention_qk_norm=True,
            tie_word_embeddings=True,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=WARMUP_STEPS, table_multiplier_start=4.0),
        steps=STEPS,
        batch_size=BATCH_SIZE,
        micro_batch_size=4,
        sequence_length=SEQUENCE_LENGTH,
        precision="bf16",
    )


@RECIPES.add("moe-227m-8in64")
def moe_227m_8in64() -> TrainConfig:
    """OLMoE-like mixture of fine-grained experts, 8 of 64 active, 227M of 1.2B parameters active."""
    return with_model(
        _trunk(intermediate_size=384),
        ffn="moe",
        num_experts=64,
        num_experts_per_tok=8,
        router_z_loss_coef=0.001,
    )


@RECIPES.add("ultramem-227m")
def ultramem_227m() -> TrainConfig:
    """UltraMem's first layer, four of them, on the trunk of moe-227m-8in64: 1.2B parameters."""
    return with_model(
        _trunk(intermediate_size=2752),
        memory="ultramem",
        memory_units=["3:6", "7:10", "11:14", "15:18"],
        memory_num_keys=808,
        memory_key_size=192,
        memory_value_size=384,
        memory_top_k=80,
        memory_query_conv_size=0,
    )


@RECIPES.add("memory-plus-227m")
def memory_plus_227m() -> TrainConfig:
    """Memory+, four layers that share one table, on the trunk of moe-227m-8in64: 1.2B parameters."""
    return with_model(
        _trunk(intermediate_size=3008),
        memory="memory_plus",
        memory_units=["5:5", "9:9", "13:13", "17:17"],
        memory_sharing="all",
        memory_num_keys=1138,
        memory_key_size=384,
        memory_value_size=768,
        memory_top_k=80,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


@RECIPES.add("ultramemv2-227m")
def ultramemv2_227m() -> TrainConfig:
    """UltraMemV2, a memory in each of the 20 blocks, on the trunk of moe-227m-8in64: 1.2B parameters."""
    return every_block_ultramem_v2(_trunk(intermediate_size=2496), num_keys=360, width=192)


@RECIPES.add("ultramemv2-1b")
def ultramemv2_1b() -> TrainConfig:
    """UltraMemV2 on the trunk of OLMoE-1B-7B: 1.3B of 7B parameters active (memory's and inner sizes inferred)."""
    trunk = with_model(
        _trunk(intermediate_size=7040),
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=16,
        tie_word_embeddings=False,
    )
    return every_block_ultramem_v2(trunk, num_keys=588, width=512)
