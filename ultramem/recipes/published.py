"""The sizes of UltraMem (arXiv 2411.12364), trained as there: dense, mixture of experts, product keys, UltraMem.

All of a size share one trunk: multi-head attention, GELU feed-forward of two matrices, untied embeddings. What the
paper does not state is marked (inferred): it reproduces the published counts of parameters and FLOPs. Our experts are
gated, three matrices each, and as large as the paper's.
"""

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.recipes.registry import Registry, with_model
from ultramem.train.config import OptimizerConfig, TrainConfig

RECIPES = Registry()

SEQUENCE_LENGTH = 2048
STEPS = 238_418  # one trillion tokens
GPT_NEOX_VOCABULARY = 50_432


def _dense(hidden_size: int, num_layers: int, num_heads: int, learning_rate: float) -> TrainConfig:
    return TrainConfig(
        name="dense",
        model=UltraMemConfig(
            vocab_size=GPT_NEOX_VOCABULARY,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=SEQUENCE_LENGTH,
            ffn="gelu",
            dropout=0.1,
        ),
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        steps=STEPS,
        batch_size=2048,
        micro_batch_size=8,
        sequence_length=SEQUENCE_LENGTH,
        precision="bf16",
    )


def _moe(dense: TrainConfig, num_experts: int, expert_size: int) -> TrainConfig:
    return with_model(
        dense, ffn="moe", num_experts=num_experts, num_experts_per_tok=2, moe_intermediate_size=expert_size
    )


def _ultramem(dense: TrainConfig, units: list[str], num_keys: int, key_size: int) -> TrainConfig:
    return with_model(
        dense,
        memory="ultramem",
        memory_units=units,
        memory_num_keys=num_keys,
        memory_key_size=key_size,
        memory_value_size=dense.model.hidden_size // 2,
        memory_top_k=42,
    )


@RECIPES.add("dense-151m")
def dense_151m() -> TrainConfig:
    """Dense transformer with 151M parameters."""
    return _dense(1024, num_layers=12, num_heads=16, learning_rate=6e-4)


@RECIPES.add("dense-680m")
def dense_680m() -> TrainConfig:
    """Dense transformer with 680M parameters."""
    return _dense(1536, num_layers=24, num_heads=16, learning_rate=2.5e-4)


@RECIPES.add("dense-1.6b")
def dense_1_6b() -> TrainConfig:
    """Dense transformer with 1.6B parameters."""
    return _dense(2048, num_layers=32, num_heads=16, learning_rate=2e-4)


@RECIPES.add("dense-6.5b")
def dense_6_5b() -> TrainConfig:
    """Dense transformer with 6.5B parameters."""
    return _dense(4096, num_layers=32, num_heads=32, learning_rate=1.2e-4)


@RECIPES.add("moe-151m-2in32")
def moe_151m_2in32() -> TrainConfig:
    """Mixture of experts, 2 of 32 active, on the 151M trunk: 2.04B parameters (expert size inferred)."""
    return _moe(dense_151m(), num_experts=32, expert_size=1688)


@RECIPES.add("moe-680m-2in33")
def moe_680m_2in33() -> TrainConfig:
    """Mixture of experts, 2 of 33 active, on the 680M trunk: 8.95B parameters (expert size inferred)."""
    return _moe(dense_680m(), num_experts=33, expert_size=2392)


@RECIPES.add("moe-1.6b-2in34")
def moe_1_6b_2in34() -> TrainConfig:
    """Mixture of experts, 2 of 34 active, on the 1.6B trunk: 21.36B parameters (expert size inferred)."""
    return _moe(dense_1_6b(), num_experts=34, expert_size=3112)


@RECIPES.add("pkm-151m-x10")
def pkm_151m_x10() -> TrainConfig:
    """Product-key memory in its own form on the 151M trunk: one layer, softmax, whole-width values, 1.5B of them."""
    return with_model(
        dense_151m(),
        memory="pkm",
        memory_units=["6:6"],
        memory_num_keys=1224,
        memory_key_size=2448,
        memory_value_size=1024,
        memory_top_k=42,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


@RECIPES.add("ultramem-151m-x10")
def ultramem_151m_x10() -> TrainConfig:
    """UltraMem on the 151M trunk with ten times its parameters: three memory layers (positions inferred)."""
    return _ultramem(dense_151m(), ["3:6", "6:9", "9:12"], num_keys=1000, key_size=500)


@RECIPES.add("ultramem-151m-x12")
def ultramem_151m_x12() -> TrainConfig:
    """UltraMem on the 151M trunk with twelve times its parameters: 2.03B."""
    return with_model(ultramem_151m_x10(), memory_num_keys=1100)


@RECIPES.add("ultramem-680m-x12")
def ultramem_680m_x12() -> TrainConfig:
    """UltraMem on the 680M trunk with twelve times its parameters: 8.93B (positions and key size inferred)."""
    return _ultramem(dense_680m(), ["3:7", "8:12", "13:17", "18:22"], num_keys=1632, key_size=720)


@RECIPES.add("ultramem-1.6b-x12")
def ultramem_1_6b_x12() -> TrainConfig:
    """UltraMem on the 1.6B trunk with twelve times its parameters: 21.41B (key size inferred)."""
    units = ["3:7", "8:12", "13:17", "18:22", "23:27", "28:32"]
    return _ultramem(dense_1_6b(), units, num_keys=1789, key_size=800)
