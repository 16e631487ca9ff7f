"""What a model costs, from its configuration alone: parameters, arithmetic, memory traffic, memory.

Nothing is allocated. The formulas are the papers' (UltraMem, arXiv 2411.12364, table 2): a parameter in a matrix costs
one multiplication and one addition a token. Tests hold the counts against real models.

Symbols: D hidden size, H heads of a memory, n keys a side, m slots a head, r Tucker rank, h cores, E expansion,
D_v value width, D_p pre-value width, D_k key width.
"""

from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from ultramem.layers.retrieval import MAX_CANDIDATES
from ultramem.layers.tables import placement
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.models.sharing import table_rows

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
    memory = _memory_unit(config) if units else _MemoryUnit(0, 0)
    rows = units * config.memory_num_heads * (config.memory_top_k or 0) if active else sum(table_rows(config))
    return Parameters(
        embeddings=vocabulary if config.tie_word_embeddings else embedding + vocabulary,
        attention=layers * 2 * size * (_query_width(config) + _key_width(config)),
        ffn=sum(_ffn(config, kind, active) for kind in config.block_ffns),
        memory=units * memory.matrices,
        tables=rows * _row_width(config) if units else 0,
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
    vectors: int


def _memory_unit(config: _Filled) -> _MemoryUnit:
    """2 sides D D_k a query, 2 sides as many keys as the unit has a head, and what goes into and out of the rows."""
    size, heads = config.hidden_size, config.memory_num_heads
    tucker = config.memory in ("ultramem", "ultramem_v2")
    ranks_of_full_width = config.memory_tucker_rank if config.memory == "ultramem_v2" else 1
    key_width = ranks_of_full_width * config.memory_key_size
    num_queries = 1 if tucker or config.memory_shared_query else heads
    key_sets = 1 if config.memory == "peer" else heads
    normed = tucker or config.memory == "memory_plus" or config.memory_qk_norm

    query = num_queries * 2 * size * key_width
    keys = key_sets * 2 * _num_keys(config) * key_width
    norms = 2 * key_width if normed else 0
    convolution = config.memory_query_conv_size * size
    cores = heads * config.memory_num_cores * config.memory_tucker_rank**2 if tucker else 0
    return _MemoryUnit(query + keys + _value_matrices(config), norms + convolution + cores)


def _value_matrices(config: _Filled) -> int:
    """Parameters of the projections beside the rows."""
    size, value_size, expansion = config.hidden_size, config.memory_value_size, config.memory_expansion
    if config.memory == "peer":
        return 0
    if config.memory == "memory_plus":
        return 2 * size * value_size
    if config.memory == "ultramem_v2":
        return size * (config.memory_pre_value_size + value_size)
    projected = config.memory == "ultramem" or expansion > 1 or value_size != size
    return expansion * value_size * size if projected else 0


def _row_width(config: _Filled) -> int:
    """Numbers that belong to one row: of a value, and of what gates it."""
    gates = {"ultramem_v2": config.memory_pre_value_size, "peer": config.memory_value_size}
    return config.memory_value_size + gates.get(config.memory, 0)


def _num_keys(config: _Filled) -> int:
    """Logical keys of a side."""
    return placement(config.memory_num_keys, expansion=config.memory_expansion, window=config.memory_window).num_keys


def _retrieval_flops(config: _Filled) -> int:
    tucker = config.memory in ("ultramem", "ultramem_v2")
    heads, chosen = config.memory_num_heads, config.memory_top_k
    key_width = config.memory_key_size * (config.memory_tucker_rank if config.memory == "ultramem_v2" else 1)
    rank, cores = (config.memory_tucker_rank, config.memory_num_cores) if tucker else (2, 1)
    candidates = min(chosen, _num_keys(config), MAX_CANDIDATES)

    convolution = 2 * config.memory_query_conv_size * config.hidden_size
    # What several queries share is a matrix once, but a product each.
    shared_keys = (heads - 1) * 2 * 2 * _num_keys(config) * config.memory_key_size if config.memory == "peer" else 0
    # The filter's scores are in the keys' product already; the candidates' scores in each rank come on top.
    candidate_scores = 2 * heads * 2 * candidates * key_width if tucker else 0
    grid = 2 * heads * (candidates * rank**2 + candidates**2 * rank)
    core_values = 2 * heads * cores * chosen * (rank**2 + rank)
    pooling = 2 * heads * chosen * _row_width(config)
    return convolution + shared_keys + candidate_scores + grid + core_values + pooling
