"""Memory layers and their rivals as plain ``nn.Module``s: numbers in, no config object, no transformers."""

from ultramem.layers.memory import MemoryOutput
from ultramem.layers.pkm import PKMLayer
from ultramem.layers.tables import Table
from ultramem.layers.ultramem import UltraMemLayer

__all__ = ["MemoryOutput", "PKMLayer", "Table", "UltraMemLayer"]
