"""How a trunk is given a memory, where recipes of several families do it alike."""

from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig


def every_block_ultramem_v2(trunk: TrainConfig, num_keys: int, width: int) -> TrainConfig:
    """Give every block of a trunk an UltraMemV2 layer: a head of 32 slots; keys, pre-values, values of one width."""
    return with_model(
        trunk,
        memory="ultramem_v2",
        memory_units=[f"{block}:{block}" for block in range(1, trunk.model.num_hidden_layers + 1)],
        memory_num_keys=num_keys,
        memory_key_size=width,
        memory_value_size=width,
        memory_pre_value_size=width,
        memory_top_k=32,
        memory_num_heads=1,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


def memory_plus(trunk: TrainConfig, units: list[str], num_keys: int, key_size: int, top_k: int) -> TrainConfig:
    """Give a trunk Memory+: units that share one table, rows as wide as the hidden size."""
    return with_model(
        trunk,
        memory="memory_plus",
        memory_units=units,
        memory_sharing="all",
        memory_num_keys=num_keys,
        memory_key_size=key_size,
        memory_value_size=trunk.model.hidden_size,
        memory_top_k=top_k,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


def without_skips_and_expansion(ultramem: TrainConfig, units: list[str], intermediate_size: int) -> TrainConfig:
    """Let UltraMem's units read and add at one block, and expand no rows; wider branches keep its FLOPs."""
    return with_model(ultramem, intermediate_size=intermediate_size, memory_units=units, memory_expansion=1)


def peer(trunk: TrainConfig, unit: str, num_keys: int, key_size: int, num_heads: int) -> TrainConfig:
    """Give a trunk one layer of PEER: 16 single-neuron experts a head."""
    return with_model(
        trunk,
        memory="peer",
        memory_units=[unit],
        memory_num_keys=num_keys,
        memory_key_size=key_size,
        memory_value_size=trunk.model.hidden_size,
        memory_top_k=16,
        memory_num_heads=num_heads,
        memory_expansion=1,
        memory_query_conv_size=0,
    )
