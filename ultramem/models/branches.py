"""Where the configuration ends: the branches of a model, built from its fields as layers with plain arguments."""

from typing import Any

from torch import nn

from ultramem.layers import peer, pkm, ultramem, ultramem_v2
from ultramem.layers.memory import MemoryLayer
from ultramem.layers.memory_plus import MemoryPlusLayer
from ultramem.layers.mlp import GELUMLP, SwiGLU
from ultramem.layers.moe import MoE
from ultramem.layers.peer import PEERLayer
from ultramem.layers.pkm import PKMLayer
from ultramem.layers.scores import score_variance
from ultramem.layers.tables import GatedTable, Table, placement
from ultramem.layers.ultramem import UltraMemLayer
from ultramem.layers.ultramem_v2 import UltraMemV2Layer
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.models.sharing import table_rows, unit_windows


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


def memory_layer(config: UltraMemConfig, unit: int) -> MemoryLayer:
    """The memory layer of one unit, without its table."""
    sizes: dict[str, Any] = {
        "num_keys": config.memory_num_keys,
        "key_size": config.memory_key_size,
        "top_k": config.memory_top_k,
        "num_heads": config.memory_num_heads,
        "query_conv_size": config.memory_query_conv_size,
        "window": config.memory_window,
        "first_row": unit_windows(config)[unit].first_row,
    }
    if config.memory == "peer":
        return PEERLayer(
            config.hidden_size, **sizes, qk_norm=config.memory_qk_norm, activation=config.memory_activation
        )
    sizes["value_size"] = config.memory_value_size
    if config.memory == "memory_plus":
        return MemoryPlusLayer(config.hidden_size, **sizes)
    sizes |= {"expansion": config.memory_expansion, "seed": config.memory_seed}
    if config.memory == "pkm":
        return PKMLayer(
            config.hidden_size,
            **sizes,
            softmax=config.memory_softmax,
            shared_query=config.memory_shared_query,
            qk_norm=config.memory_qk_norm,
        )
    sizes |= {
        "tucker_rank": config.memory_tucker_rank,
        "num_cores": config.memory_num_cores,
        "tucker_margin": config.memory_tucker_margin,
    }
    if config.memory_tucker_penalty is not None:
        sizes["tucker_penalty"] = config.memory_tucker_penalty
    if config.memory == "ultramem_v2":
        assert config.memory_pre_value_size is not None  # checked by the config
        return UltraMemV2Layer(
            config.hidden_size,
            **sizes,
            pre_value_size=config.memory_pre_value_size,
            balance_coef=config.memory_balance_coef,
        )
    return UltraMemLayer(config.hidden_size, **sizes, calibrated=config.memory_improved_init)


def memory_tables(config: UltraMemConfig, table_class: type[Table]) -> list[Table | GatedTable]:
    """The tables of all units; `ultramem.models.sharing.unit_windows` tells who reads which."""
    return [_memory_table(config, num_rows, table_class) for num_rows in table_rows(config)]


def _memory_table(config: UltraMemConfig, num_rows: int, table_class: type[Table]) -> Table | GatedTable:
    assert config.memory_num_keys is not None  # checked by the config
    assert config.memory_value_size is not None
    assert config.memory_top_k is not None
    choices = {"top_k": config.memory_top_k, "num_heads": config.memory_num_heads}
    width = config.memory_value_size
    if config.memory == "peer":
        pre_std, std = peer.expert_stds(
            width, **choices, num_layers=config.num_hidden_layers, activation=config.memory_activation
        )
        return GatedTable(num_rows, pre_width=width, width=width, pre_std=pre_std, std=std, table_class=table_class)
    if config.memory == "ultramem_v2":
        assert config.memory_pre_value_size is not None  # checked by the config
        std = ultramem_v2.value_std(
            hidden_size=config.hidden_size,
            pre_value_size=config.memory_pre_value_size,
            value_size=width,
            **choices,
            score_variance=score_variance(
                num_keys=placement(
                    config.memory_num_keys, expansion=config.memory_expansion, window=config.memory_window
                ).num_keys,
                **choices,
                tucker_rank=config.memory_tucker_rank,
                num_cores=config.memory_num_cores,
            ),
            output_variance=1 / (2 * config.num_hidden_layers),
        )
        return GatedTable(
            num_rows,
            pre_width=config.memory_pre_value_size,
            width=width,
            pre_std=std,
            std=std,
            table_class=table_class,
        )
    if config.memory == "ultramem" and config.memory_improved_init:
        std = ultramem.value_std(expansion=config.memory_expansion, **choices, num_layers=config.num_hidden_layers)
    else:
        std = pkm.value_std(width)
    return table_class(num_rows, width, std=std)
