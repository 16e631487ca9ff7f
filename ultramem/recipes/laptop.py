"""The family of a laptop: all rivals of equal compute at 1.4M active parameters, trained in minutes on two CPU cores.

Within it everything is the same but the feed-forward branch and the memory, as in the families of `one_gpu`, and the
learning rate of UltraMemV2's tables. `cpu-ultramem` has one head of 32 slots where the paper has two of 42, and rows as
wide as the hidden size: in a run of minutes this learns fastest (see docs/results.md).
"""

from dataclasses import replace

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.recipes.memories import every_block_ultramem_v2, memory_plus, peer, without_skips_and_expansion
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


@RECIPES.add("cpu-ultramem-simple")
def cpu_ultramem_simple() -> TrainConfig:
    """UltraMem without skips and expansion, at the compute of cpu-dense."""
    return without_skips_and_expansion(cpu_ultramem(), ["1:1", "3:3", "5:5"], intermediate_size=368)


@RECIPES.add("cpu-memory-plus")
def cpu_memory_plus() -> TrainConfig:
    """Memory+, three layers that share one table, at the compute of cpu-dense."""
    return memory_plus(_cpu(intermediate_size=336), ["2:2", "4:4", "6:6"], num_keys=311, key_size=32, top_k=16)


@RECIPES.add("cpu-ultramem-v2")
def cpu_ultramem_v2() -> TrainConfig:
    """UltraMemV2, a memory in every block, at the compute of cpu-dense.

    Its tables learn more at 3 times the trunk's learning rate than at the 10 of all others, perhaps because two of
    them are multiplied, so that a multiple counts twice (see docs/results.md).
    """
    config = every_block_ultramem_v2(_cpu(intermediate_size=312), num_keys=180, width=32)
    return replace(config, optimizer=replace(config.optimizer, table_multiplier_start=3.0))


@RECIPES.add("cpu-peer")
def cpu_peer() -> TrainConfig:
    """PEER, one layer of single-neuron experts, at the compute of cpu-dense."""
    return peer(_cpu(intermediate_size=408), "3:3", num_keys=220, key_size=32, num_heads=4)
