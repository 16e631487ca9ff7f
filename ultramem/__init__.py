"""ultramem: memory layers for language models.

The public names load when they are touched: the operations and the layers need torch alone, the models also
transformers, whose Auto classes know them from then on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultramem import layers, models, ops
    from ultramem.layers.memory import MemoryOutput
    from ultramem.layers.memory_plus import MemoryPlusLayer
    from ultramem.layers.mlp import GELUMLP, SwiGLU
    from ultramem.layers.moe import MoE, MoEOutput
    from ultramem.layers.peer import PEERLayer
    from ultramem.layers.pkm import PKMLayer
    from ultramem.layers.tables import GatedTable, Table
    from ultramem.layers.ultramem import UltraMemLayer
    from ultramem.layers.ultramem_v2 import UltraMemV2Layer
    from ultramem.models import UltraMemConfig, UltraMemForCausalLM, UltraMemModel

_MODULES = {
    "GELUMLP": "ultramem.layers.mlp",
    "GatedTable": "ultramem.layers.tables",
    "MemoryOutput": "ultramem.layers.memory",
    "MemoryPlusLayer": "ultramem.layers.memory_plus",
    "MoE": "ultramem.layers.moe",
    "MoEOutput": "ultramem.layers.moe",
    "PEERLayer": "ultramem.layers.peer",
    "PKMLayer": "ultramem.layers.pkm",
    "SwiGLU": "ultramem.layers.mlp",
    "Table": "ultramem.layers.tables",
    "UltraMemConfig": "ultramem.models",
    "UltraMemForCausalLM": "ultramem.models",
    "UltraMemLayer": "ultramem.layers.ultramem",
    "UltraMemModel": "ultramem.models",
    "UltraMemV2Layer": "ultramem.layers.ultramem_v2",
}

__all__ = [
    "GELUMLP",
    "GatedTable",
    "MemoryOutput",
    "MemoryPlusLayer",
    "MoE",
    "MoEOutput",
    "PEERLayer",
    "PKMLayer",
    "SwiGLU",
    "Table",
    "UltraMemConfig",
    "UltraMemForCausalLM",
    "UltraMemLayer",
    "UltraMemModel",
    "UltraMemV2Layer",
    "layers",
    "models",
    "ops",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name in ("layers", "models", "ops"):
        return import_module(f"ultramem.{name}")
    raise AttributeError(f"module 'ultramem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
