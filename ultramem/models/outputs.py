"""What the models return. B batch, T tokens, D hidden size, V vocabulary.

Transformers' own outputs, whose cache has the name that the installed version gives it
(`ultramem.models.cache_keyword`), and what is ours. The cache holds keys, values and the state of the memory layers'
convolutions; `attentions` are never returned.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ultramem.layers.memory import MemoryOutput


@dataclass
class UltraMemModelOutput(BaseModelOutputWithPast):
    """What the trunk returns: `last_hidden_state`, the cache, `hidden_states`, and the fields below."""

    last_hidden_state: Tensor | None = None
    """`(B, T, D)`, after the final norm."""
    hidden_states: tuple[Tensor, ...] | None = None
    """On request: the input of every block, and `last_hidden_state`."""
    auxiliary_loss: Tensor | None = None
    """`()` float32, the sum over experts and memory layers, coefficients applied."""
    memory: tuple[MemoryOutput, ...] | None = None
    """On request: what every memory unit returned, in the order of `memory_units`."""


@dataclass
class UltraMemCausalLMOutput(CausalLMOutputWithPast):
    """What the language model returns: the cache, and the fields below."""

    loss: Tensor | None = None
    """`()` float32: `cross_entropy` + `auxiliary_loss`. None without labels."""
    logits: Tensor | None = None
    """`(B, T, V)`, or of the last positions; None where only the loss was asked for."""
    hidden_states: tuple[Tensor, ...] | None = None
    """On request: the input of every block, and the final hidden state."""
    cross_entropy: Tensor | None = None
    """`()` float32, detached: the mean over the predicted tokens. None without labels."""
    auxiliary_loss: Tensor | None = None
    """`()` float32, the sum over experts and memory layers, coefficients applied."""
    memory: tuple[MemoryOutput, ...] | None = None
    """On request: what every memory unit returned, in the order of `memory_units`."""
