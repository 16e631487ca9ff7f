"""Causal self-attention with grouped queries and rotary positions, on transformers' attention interface and caches."""

from typing import NamedTuple

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from ultramem.models.configuration_ultramem import UltraMemConfig


class _HeadsAsTokens:
    """What a kernel asks of the module that calls it, where heads are passed as tokens."""

    is_causal = False
    num_key_value_groups = 1
    training = False


_HEADS_AS_TOKENS = _HeadsAsTokens()  # made once: not a part of what a compiler traces


class Heads(NamedTuple):
    """Queries, keys and values of some tokens; there may be more heads of queries than of the others."""

    query: Tensor
    """`(B, heads, T, head_dim)`."""
    key: Tensor
    """`(B, key heads, T, head_dim)`; with what a cache holds, of more tokens."""
    value: Tensor
    """As the keys."""


class Attention(nn.Module):
    """Self-attention of one block; parameter names and arithmetic are Llama's.

    Two steps, between which a cache is extended: `attention.attend(attention.project(hidden_states, rotary))`.

    Args:
        config: the model's configuration; its `_attn_implementation` names the kernel (sdpa by default).
        layer_idx: 0-based number of the block, by which it finds its part of the cache.
    """

    is_causal = True

    def __init__(self, config: UltraMemConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.num_key_value_heads is not None  # filled by the config
        assert config.head_dim is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.attention_qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.attention_qk_norm else None

    def reset_parameters(self, output_gain: float = 1.0) -> None:
        """Unit gain, inputs of unit variance given; `output_gain` scales the last matrix."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        nn.init.normal_(self.o_proj.weight, std=output_gain * self.o_proj.in_features**-0.5)

    def project(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Heads:
        """Maps `(B, T, D)` to queries, keys and values with their positions.

        Args:
            hidden_states: `(B, T, D)`.
            position_embeddings: cosine and sine, each `(B or 1, T, head_dim)`.
        """
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)
        key = self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            # Under autocast the projections are in half precision; a fused norm wants the dtype of its weight.
            query = self.q_norm(query.to(self.q_norm.weight.dtype))
            key = self.k_norm(key.to(self.k_norm.weight.dtype))
        query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *position_embeddings)
        return Heads(query, key, value)

    def attend(self, heads: Heads, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        """Maps queries, keys and values to `(B, T, D)`.

        Args:
            heads: of T tokens, after those that a cache holds.
            attention_mask: in the form that the chosen kernel takes, or None for plain causal attention.
            kwargs: passed on to the kernel.
        """
        query, key, value = heads
        batch, _, length, _ = query.shape
        kernel = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention_forward)
        same_mask = attention_mask is None or attention_mask.shape[1] == 1
        paged = "cache" in kwargs  # up to transformers 5.23 the kernel extends such a cache, by the block's number
        grouped = length == 1 and not self.training and kernel in ("sdpa", "eager") and same_mask and not paged
        if grouped:  # the heads of a group are to their keys as so many tokens: no key is copied for every head
            query = query.reshape(batch, -1, self.num_key_value_groups, self.head_dim)
        attended, _ = attend(
            _HEADS_AS_TOKENS if grouped else self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        if grouped:
            attended = attended.transpose(1, 2)
        return self.o_proj(attended.reshape(batch, length, -1))
