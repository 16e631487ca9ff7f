"""Memory layers and their rivals as plain ``nn.Module``s: numbers in, no config object, no transformers."""

from ultramem.layers.memory import MemoryOutput
from ultramem.layers.mlp import GELUMLP, SwiGLU
from ultramem.layers.moe import MoE, MoEOutput
from ultramem.layers.pkm import PKMLayer
from ultramem.layers.tables import Table
from ultramem.layers.ultramem import UltraMemLayer

__all__ = ["GELUMLP", "MemoryOutput", "MoE", "MoEOutput", "PKMLayer", "SwiGLU", "Table", "UltraMemLayer"]
