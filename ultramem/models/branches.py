"""Where the configuration ends: the branches of a model, built from its fields as layers with plain arguments."""

from typing import Any

from torch import nn

from ultramem.layers.mlp import GELUMLP, SwiGLU
from ultramem.layers.moe import MoE
from ultramem.layers.pkm import PKMLayer
from ultramem.layers.pkm import value_std as pkm_value_std
from ultramem.layers.tables import Table
from ultramem.layers.ultramem import UltraMemLayer
from ultramem.layers.ultramem import value_std as ultramem_value_std
from ultramem.models.configuration_ultramem import UltraMemConfig


def feed_forward(config: UltraMemConfig, kind: str) -> nn.Module:
    """The feed-forward branch of one block; kind is one of the names that `config.ffn` takes."""
    if kind == "moe":
        assert config.moe_intermediate_size is not None  # filled by the config
        return MoE(
            config.hidden_size,
            config.moe_intermediate_size,
            num_experts=config.num_experts,
            num_experts_per_tok=config.num_experts_per_tok,
            num_shared_experts=config.num_shared_experts,
            load_balance_coef=config.router_aux_loss_coef,
            z_loss_coef=config.router_z_loss_coef,
        )
    return {"swiglu": SwiGLU, "gelu": GELUMLP}[kind](config.hidden_size, config.intermediate_size)


def memory_layer(config: UltraMemConfig) -> UltraMemLayer | PKMLayer:
    """The memory layer of one unit, without its table."""
    sizes: dict[str, Any] = {
        "num_keys": config.memory_num_keys,
        "key_size": config.memory_key_size,
        "value_size": config.memory_value_size,
        "top_k": config.memory_top_k,
        "num_heads": config.memory_num_heads,
        "expansion": config.memory_expansion,
        "query_conv_size": config.memory_query_conv_size,
        "seed": config.memory_seed,
    }
    if config.memory == "pkm":
        return PKMLayer(
            config.hidden_size,
            **sizes,
            softmax=config.memory_softmax,
            shared_query=config.memory_shared_query,
            qk_norm=config.memory_qk_norm,
        )
    return UltraMemLayer(
        config.hidden_size,
        **sizes,
        tucker_rank=config.memory_tucker_rank,
        num_cores=config.memory_num_cores,
        tucker_penalty=config.memory_tucker_penalty,
        tucker_margin=config.memory_tucker_margin,
        calibrated=config.memory_improved_init,
    )


def memory_table(config: UltraMemConfig) -> Table:
    """The table of one unit."""
    assert config.memory_num_keys is not None  # checked by the config
    assert config.memory_value_size is not None
    assert config.memory_top_k is not None
    if config.memory == "ultramem" and config.memory_improved_init:
        std = ultramem_value_std(
            expansion=config.memory_expansion,
            top_k=config.memory_top_k,
            num_heads=config.memory_num_heads,
            num_layers=config.num_hidden_layers,
        )
    else:
        std = pkm_value_std(config.memory_value_size)
    return Table(config.memory_num_keys**2, config.memory_value_size, std=std)
