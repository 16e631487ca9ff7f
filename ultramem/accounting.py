"""What a model costs, from its configuration alone: parameters, arithmetic, memory traffic, memory.

Nothing is allocated. The formulas are the papers' (UltraMem, arXiv 2411.12364, table 2): a parameter in a matrix costs
one multiplication and one addition a token. Tests hold the counts against real models.

Symbols: D hidden size, H heads of a memory, n keys a side, m slots a head, r Tucker rank, h cores, E expansion,
D_v value width, D_k key width.
"""

from dataclasses import astuple, dataclass
from math import isqrt
from typing import Any, NamedTuple

from ultramem.layers.retrieval import MAX_CANDIDATES
from ultramem.models.configuration_ultramem import UltraMemConfig

TRAINING_BYTES = 16  # a parameter in float32: itself, its gradient, Adam's two moments


# An UltraMemConfig whose optional fields are filled in, as they are once it is made; a type checker cannot know that.
_Filled = Any


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many numbers a model has, by what they are for."""

    embeddings: int
    """Token embedding and output head (one matrix where they are tied)."""
    attention: int
    """Projections of attention."""
    ffn: int
    """Matrices of the feed-forward branch, routers and experts."""
    memory: int
    """Query, key and output matrices of the memory layers."""
    tables: int
    """Rows of the memory tables: the sparse parameters."""
    vectors: int
    """Norms, convolutions and Tucker cores: small, and left out of the papers' counts."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))

    @property
    def without_embeddings(self) -> int:
        """All but embeddings and output head, as the papers count."""
        return self.total - self.embeddings

    @property
    def matrices(self) -> int:
        """Dense matrices without embeddings: those whose parameters each cost two FLOPs a token."""
        return self.attention + self.ffn + self.memory


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of a forward pass, a token."""

    matrices: int
    """Products with attention, feed-forward and memory matrices."""
    retrieval: int
    """What a memory does besides: convolution, scores of the candidates, choice of the slots, pooling of the rows."""
    attention: int
    """Attention's products of queries, keys and values, at the mean position of the context."""
    head: int
    """Output head."""

    @property
    def per_token(self) -> int:
        """The part that models of one trunk differ in: matrices and retrieval. Comparisons go by this."""
        return self.matrices + self.retrieval

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))


def count_parameters(config: UltraMemConfig) -> Parameters:
    """Count every parameter of the model.

    Example:
        >>> from ultramem import recipes
        >>> count_parameters(recipes.get("dense-151m").model).matrices
        150994944
    """
    return _count(config, active=False)


def count_active_parameters(config: UltraMemConfig) -> Parameters:
    """Count the parameters that one token passes through: chosen experts, rows read, one row of the embedding."""
    return _count(config, active=True)


def count_flops(config: UltraMemConfig, context: int) -> Flops:
    """Count a forward pass's operations a token, for sequences of `context` tokens."""
    matrices = count_active_parameters(config).matrices
    return Flops(
        matrices=2 * matrices,
        retrieval=len(config.memory_units) * _retrieval_flops(config) if config.memory_units else 0,
        attention=config.num_hidden_layers * 2 * _query_width(config) * (context + 1),
        head=2 * config.vocab_size * config.hidden_size,
    )


def bytes_read_per_token(config: UltraMemConfig, context: int, bytes_per_number: int = 2) -> int:
    """Bytes that one decode step of one sequence reads: active weights, and keys and values of `context` tokens."""
    active = count_active_parameters(config)
    head = config.vocab_size * config.hidden_size
    return bytes_per_number * (active.without_embeddings + config.hidden_size + head) + cache_bytes(
        config, context, bytes_per_number
    )


def training_bytes(config: UltraMemConfig) -> int:
    """Bytes of weights, gradients and optimizer state in float32. Activations come on top."""
    return TRAINING_BYTES * count_parameters(config).total


def inference_bytes(config: UltraMemConfig, context: int, bytes_per_number: int = 2) -> int:
    """Bytes of all weights and of one sequence's cache of `context` tokens."""
    return bytes_per_number * count_parameters(config).total + cache_bytes(config, context, bytes_per_number)


def cache_bytes(config: UltraMemConfig, context: int, bytes_per_number: int = 2) -> int:
    """Bytes of one sequence's keys and values of attention."""
    return 2 * config.num_hidden_layers * _key_width(config) * context * bytes_per_number


def _query_width(config: _Filled) -> int:
    return config.num_attention_heads * config.head_dim


def _key_width(config: _Filled) -> int:
    return config.num_key_value_heads * config.head_dim


def _count(config: _Filled, *, active: bool) -> Parameters:
    size, layers, units = config.hidden_size, config.num_hidden_layers, len(config.memory_units)
    vocabulary = config.vocab_size * size
    embedding = size if active else vocabulary
    norms = (2 * layers + 1) * size + (2 * layers * config.head_dim if config.attention_qk_norm else 0)
    memory = _memory_unit(config, active) if units else _MemoryUnit(0, 0, 0)
    return Parameters(
        embeddings=vocabulary if config.tie_word_embeddings else embedding + vocabulary,
        attention=layers * 2 * size * (_query_width(config) + _key_width(config)),
        ffn=sum(_ffn(config, kind, active) for kind in config.block_ffns),
        memory=units * memory.matrices,
        tables=units * memory.table,
        vectors=norms + units * memory.vectors,
    )


def _ffn(config: _Filled, kind: str, active: bool) -> int:
    size = config.hidden_size
    if kind == "gelu":
        return 2 * size * config.intermediate_size
    if kind == "swiglu":
        return 3 * size * config.intermediate_size
    routed = config.num_experts_per_tok if active else config.num_experts
    expert = 3 * size * config.moe_intermediate_size
    return config.num_experts * size + (routed + config.num_shared_experts) * expert


class _MemoryUnit(NamedTuple):
    matrices: int
    table: int
    vectors: int


def _memory_unit(config: _Filled, active: bool) -> _MemoryUnit:
    """2 sides D D_k a query, 2 sides sqrt(E) n D_k a head, E D_v D for the projection."""
    tucker = config.memory == "ultramem"
    size, heads, expansion = config.hidden_size, config.memory_num_heads, config.memory_expansion
    num_queries = 1 if tucker or config.memory_shared_query else heads
    projected = tucker or expansion > 1 or config.memory_value_size != size
    normed = tucker or config.memory_qk_norm

    query = num_queries * 2 * size * config.memory_key_size
    keys = heads * 2 * isqrt(expansion) * config.memory_num_keys * config.memory_key_size
    projection = expansion * config.memory_value_size * size if projected else 0
    rows = heads * config.memory_top_k if active else config.memory_num_keys**2
    norms = 2 * config.memory_key_size if normed else 0
    convolution = config.memory_query_conv_size * size
    cores = heads * config.memory_num_cores * config.memory_tucker_rank**2 if tucker else 0
    return _MemoryUnit(query + keys + projection, rows * config.memory_value_size, norms + convolution + cores)


def _retrieval_flops(config: _Filled) -> int:
    tucker = config.memory == "ultramem"
    heads, chosen = config.memory_num_heads, config.memory_top_k
    rank, cores = (config.memory_tucker_rank, config.memory_num_cores) if tucker else (2, 1)
    candidates = min(chosen, config.memory_num_keys * isqrt(config.memory_expansion), MAX_CANDIDATES)

    convolution = 2 * config.memory_query_conv_size * config.hidden_size
    # The filter's scores are in the keys' product already; the candidates' scores in each rank come on top.
    candidate_scores = 2 * heads * 2 * candidates * config.memory_key_size if tucker else 0
    grid = 2 * heads * (candidates * rank**2 + candidates**2 * rank)
    core_values = 2 * heads * cores * chosen * (rank**2 + rank)
    pooling = 2 * heads * chosen * config.memory_value_size
    return convolution + candidate_scores + grid + core_values + pooling
