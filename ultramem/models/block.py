"""A block of the decoder: `x = x + attention(norm(x))`, `h = norm(x)`, `x = x + ffn(h)`."""

from types import MethodType

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from ultramem.layers.moe import MoEOutput
from ultramem.models.attention import Attention, Heads
from ultramem.models.branches import feed_forward
from ultramem.models.cache_keyword import takes_cache_keyword
from ultramem.models.configuration_ultramem import UltraMemConfig


class Block(GradientCheckpointingLayer):
    """One pre-norm decoder block. The models of the family differ in `mlp` alone.

    Args:
        config: the model's configuration.
        layer_idx: 0-based number of the block, by which it finds its part of the cache.
    """

    def __init__(self, config: UltraMemConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = feed_forward(config, config.block_ffns[layer_idx])
        self.dropout = nn.Dropout(config.dropout)

    @takes_cache_keyword
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Maps `(B, T, D)` to the new hidden states, the normed input of `mlp`, and its auxiliary loss if any.

        Args:
            hidden_states: `(B, T, D)`.
            position_embeddings: cosine and sine, each `(B or 1, T, head_dim)`.
            attention_mask: in the form that the attention kernel takes, or None for plain causal attention.
            past_key_values: the cache; this block's part is read and extended.
            kwargs: passed on to the kernel.
        """
        if past_key_values is None:
            return self.without_cache(hidden_states, position_embeddings, attention_mask, **kwargs)
        query, key, value = self.before_cache(hidden_states, position_embeddings)
        key, value = past_key_values.update(key, value, self.layer_idx, kwargs=kwargs)
        return self.after_cache(hidden_states, Heads(query, key, value), attention_mask, **kwargs)

    def without_cache(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        **kwargs,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `forward` returns where there is no cache, as in training."""
        # The class's own: the block's may be compiled, and would be a region within a region.
        heads = Block.before_cache(self, hidden_states, position_embeddings)
        return Block.after_cache(self, hidden_states, heads, attention_mask, **kwargs)

    def before_cache(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Heads:
        """What the attention compares: `(B, T, D)` to queries, keys and values."""
        return self.self_attn.project(self.input_layernorm(hidden_states), position_embeddings)

    def after_cache(
        self, hidden_states: Tensor, heads: Heads, attention_mask: Tensor | None, **kwargs
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The attention itself and the feed-forward branch; returns what `forward` does."""
        hidden_states = hidden_states + self.dropout(self.self_attn.attend(heads, attention_mask, **kwargs))
        normed = self.post_attention_layernorm(hidden_states)
        output = self.mlp(normed)
        if isinstance(output, MoEOutput):
            return hidden_states + self.dropout(output.hidden_states), normed, output.auxiliary_loss
        return hidden_states + self.dropout(output), normed, None

    def compile(self, *args, **kwargs) -> None:
        """Compile three regions, each at its first call: the whole block, and what comes before a cache and after it.

        The arguments are `torch.compile`'s. A cache knows a block by its number: with it inside, every block would be
        compiled anew. Without one, taking the block apart would cost a tenth of a training step.
        """
        for step in (Block.without_cache, Block.before_cache, Block.after_cache):
            # Bound here, not by the compiler: a copy of the block has the same code and weights of its own.
            setattr(self, step.__name__, MethodType(torch.compile(step, *args, **kwargs), self))
