"""What the models return. B batch, T tokens, D hidden size, V vocabulary."""

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ultramem.layers.memory import MemoryOutput


@dataclass
class UltraMemModelOutput(ModelOutput):
    """What the trunk returns."""

    last_hidden_state: Tensor | None = None
    """`(B, T, D)`, after the final norm."""
    auxiliary_loss: Tensor | None = None
    """`()` float32, the sum over experts and memory layers, coefficients applied."""
    past_key_values: Cache | None = None
    """Keys, values and the state of the memory layers' convolutions."""
    hidden_states: tuple[Tensor, ...] | None = None
    """On request: the input of every block, and `last_hidden_state`."""
    memory: tuple[MemoryOutput, ...] | None = None
    """On request: what every memory unit returned, in the order of `memory_units`."""


@dataclass
class UltraMemCausalLMOutput(ModelOutput):
    """What the language model returns."""

    loss: Tensor | None = None
    """`()` float32: `cross_entropy` + `auxiliary_loss`. None without labels."""
    logits: Tensor | None = None
    """`(B, T, V)`, or of the last positions; None where only the loss was asked for."""
    cross_entropy: Tensor | None = None
    """`()` float32, detached: the mean over the predicted tokens. None without labels."""
    auxiliary_loss: Tensor | None = None
    """`()` float32, the sum over experts and memory layers, coefficients applied."""
    past_key_values: Cache | None = None
    """Keys, values and the state of the memory layers' convolutions."""
    hidden_states: tuple[Tensor, ...] | None = None
    """On request: the input of every block, and the final hidden state."""
    memory: tuple[MemoryOutput, ...] | None = None
    """On request: what every memory unit returned, in the order of `memory_units`."""
