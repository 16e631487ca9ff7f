"""ultramem: memory layers for language models.

The public names load when they are touched: the operations and the layers need torch alone, the models also
transformers, whose Auto classes know them from then on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultramem import layers, models, ops
    from ultramem.layers.memory import MemoryOutput
    from ultramem.layers.mlp import GELUMLP, SwiGLU
    from ultramem.layers.moe import MoE, MoEOutput
    from ultramem.layers.pkm import PKMLayer
    from ultramem.layers.tables import Table
    from ultramem.layers.ultramem import UltraMemLayer
    from ultramem.models import UltraMemConfig, UltraMemForCausalLM, UltraMemModel

_MODULES = {
    "GELUMLP": "ultramem.layers.mlp",
    "MemoryOutput": "ultramem.layers.memory",
    "MoE": "ultramem.layers.moe",
    "MoEOutput": "ultramem.layers.moe",
    "PKMLayer": "ultramem.layers.pkm",
    "SwiGLU": "ultramem.layers.mlp",
    "Table": "ultramem.layers.tables",
    "UltraMemConfig": "ultramem.models",
    "UltraMemForCausalLM": "ultramem.models",
    "UltraMemLayer": "ultramem.layers.ultramem",
    "UltraMemModel": "ultramem.models",
}

__all__ = [
    "GELUMLP",
    "MemoryOutput",
    "MoE",
    "MoEOutput",
    "PKMLayer",
    "SwiGLU",
    "Table",
    "UltraMemConfig",
    "UltraMemForCausalLM",
    "UltraMemLayer",
    "UltraMemModel",
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
