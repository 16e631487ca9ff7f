"""Memory layers and their rivals as plain ``nn.Module``s: numbers in, no config object, no transformers."""

from ultramem.layers.memory import MemoryOutput
from ultramem.layers.memory_plus import MemoryPlusLayer
from ultramem.layers.mlp import GELUMLP, SwiGLU
from ultramem.layers.moe import MoE, MoEOutput
from ultramem.layers.peer import PEERLayer
from ultramem.layers.pkm import PKMLayer
from ultramem.layers.tables import GatedTable, Table
from ultramem.layers.ultramem import UltraMemLayer
from ultramem.layers.ultramem_v2 import UltraMemV2Layer

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
    "UltraMemLayer",
    "UltraMemV2Layer",
]
