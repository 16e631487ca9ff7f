"""The configuration of every model of the family: dense, mixture of experts, and the memory layers.

A field that does not exist and a shape that cannot work are refused here, before any tensor is made.
"""

from dataclasses import field, fields
from difflib import get_close_matches
from functools import wraps
from math import isqrt

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters
from transformers.utils.type_validators import positive_int_field

from ultramem.layers.peer import ACTIVATIONS
from ultramem.layers.retrieval import MAX_CANDIDATES
from ultramem.models.cache_keyword import CACHE_KEYWORD

FEED_FORWARDS = ("swiglu", "gelu", "moe")
MEMORIES = ("ultramem", "ultramem_v2", "pkm", "memory_plus", "peer")
SHARINGS = ("own", "ring", "block", "all")

# Settings of some kinds of memory. The others would ignore them, so there they have to keep their defaults.
_KINDS_THAT_READ = {
    "memory_pre_value_size": ("ultramem_v2",),
    "memory_tucker_rank": ("ultramem", "ultramem_v2"),
    "memory_num_cores": ("ultramem", "ultramem_v2"),
    "memory_tucker_penalty": ("ultramem", "ultramem_v2"),
    "memory_tucker_margin": ("ultramem", "ultramem_v2"),
    "memory_balance_coef": ("ultramem_v2",),
    "memory_improved_init": ("ultramem",),
    "memory_softmax": ("pkm",),
    "memory_shared_query": ("pkm",),
    "memory_qk_norm": ("pkm", "peer"),
    "memory_activation": ("peer",),
}

# Keywords that are no fields and that transformers itself writes into a saved file or passes on while loading it.
_TRANSFORMERS_KEYWORDS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "torch_dtype",
}


def _raise_value_errors(cls):
    """Makes a strict dataclass's own exceptions, which are no ValueErrors and span lines, ValueErrors of one line."""
    strict_init = cls.__init__

    @wraps(strict_init)
    def __init__(self, *args, **kwargs):
        try:
            strict_init(self, *args, **kwargs)
        except StrictDataclassError as error:
            named_by_validator = isinstance(error, StrictDataclassClassValidationError)
            message = str(error.__cause__ if named_by_validator else error)
            raise ValueError(" ".join(message.split())) from error

    cls.__init__ = __init__
    return cls


@_raise_value_errors
@strict
class UltraMemConfig(PreTrainedConfig):
    """Shape and settings of an UltraMem model or of one of its rivals.

    The rivals differ in two fields only: `ffn`, the feed-forward branch of the blocks, and `memory` with its units.

    Raises:
        ValueError: an unknown field (the nearest name is given), a value of the wrong type, an impossible shape.

    Example:
        >>> config = UltraMemConfig(
        ...     hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
        ...     memory="ultramem", memory_units=["2:3"],
        ...     memory_num_keys=32, memory_key_size=32, memory_value_size=32, memory_top_k=8,
        ... )
        >>> config.memory_unit_blocks
        [(1, 2)]
    """

    model_type = "ultramem"
    keys_to_ignore_at_inference = [CACHE_KEYWORD, "cross_entropy", "auxiliary_loss", "memory"]  # noqa: RUF012

    vocab_size: int = positive_int_field(default=32000)
    """Number of tokens that the embedding and the output layer know."""
    hidden_size: int = positive_int_field(default=512)
    """Width D of the residual stream."""
    intermediate_size: int = positive_int_field(default=2048)
    """Inner width of a dense feed-forward branch."""
    num_hidden_layers: int = positive_int_field(default=8)
    """Number L of blocks."""
    num_attention_heads: int = positive_int_field(default=8)
    """Number of query heads."""
    num_key_value_heads: int | None = positive_int_field(default=None)
    """Number of key and value heads; divides `num_attention_heads`, and is equal to it when None."""
    head_dim: int | None = positive_int_field(default=None)
    """Width of one attention head, even; `hidden_size / num_attention_heads` when None."""
    max_position_embeddings: int = positive_int_field(default=2048)
    """Longest sequence, in tokens, that the model is meant for."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm of the trunk."""
    rope_parameters: RopeParameters | dict | None = None
    """Rotary position embedding as in Llama, `{"rope_type": "default", "rope_theta": 10000.0}` when None. The keyword
    `rope_theta` is taken too, and stored here."""
    dropout: float = 0.0
    """Dropout on the residual branches: attention, feed-forward and memory."""
    attention_dropout: float = 0.0
    """Dropout on the attention weights."""
    attention_qk_norm: bool = False
    """RMSNorm over each head's query and key, before the rotation."""
    tie_word_embeddings: bool = False
    """The output layer uses the embedding's matrix."""
    use_cache: bool = True
    """Return the key-value cache, where no loss is asked for."""
    pad_token_id: int | None = None
    """Token that fills short sequences of a batch."""
    bos_token_id: int | None = None
    """Token that begins a sequence."""
    eos_token_id: int | list[int] | None = None
    """Token or tokens that end a sequence."""

    ffn: str | list[str] = "swiglu"
    """Feed-forward branch: "swiglu", "gelu" or "moe"; or a list of these, one a block."""
    num_experts: int = positive_int_field(default=32)
    """Routed experts of a "moe" block."""
    num_experts_per_tok: int = positive_int_field(default=2)
    """Routed experts that one token runs through."""
    moe_intermediate_size: int | None = positive_int_field(default=None)
    """Inner width of one expert; `intermediate_size` when None."""
    num_shared_experts: int = 0
    """Experts that every token runs through besides."""
    router_aux_loss_coef: float = 0.01
    """Weight of the load-balance loss of each "moe" block."""
    router_z_loss_coef: float = 0.0
    """Weight of the router's z-loss."""

    memory: str | None = None
    """Kind of memory layer: "ultramem", "ultramem_v2", "pkm", "memory_plus" or "peer"; None for none."""
    memory_units: list[str] = field(default_factory=list)
    """Memory layers as "k:k'", counted from 1 as in the paper: reads at block k, is added after block k'. "4:4" is in
    place. One unit at most reads at a block."""
    memory_num_keys: int | None = positive_int_field(default=None)
    """n, physical keys a side: a unit adds n * n rows to the tables, and has sqrt(E) * n logical keys a side, or
    sqrt(g * E) * n where it reads a window of g units."""
    memory_key_size: int | None = positive_int_field(default=None)
    """D_k, width of a key of one side: over all ranks in "ultramem", of each rank in "ultramem_v2"."""
    memory_value_size: int | None = positive_int_field(default=None)
    """D_v, width of a row of the table; `hidden_size` in "peer", whose experts' down vectors have it too."""
    memory_pre_value_size: int | None = positive_int_field(default=None)
    """D_p, width of a pre-value. "ultramem_v2" only."""
    memory_top_k: int | None = positive_int_field(default=None)
    """m, slots that one head reads for a token."""
    memory_num_heads: int = positive_int_field(default=2)
    """H, key sets."""
    memory_expansion: int = positive_int_field(default=4)
    """E, virtual tables made of one table (implicit value expansion); a square. 1 in "memory_plus" and "peer"."""
    memory_query_conv_size: int = 4
    """Taps of the causal convolution in front of the query; 0 for none."""
    memory_seed: int = 0
    """Seed of the permutation that scatters the expanded slots over the table."""
    memory_sharing: str = "own"
    """Whose rows a unit reads: "own", its n * n; "ring", those of `memory_window` units from its own on, round the
    end; "block", those of its group of `memory_window` neighbours; "all", one table of n * n rows, as all units do."""
    memory_window: int = positive_int_field(default=1)
    """g, units whose rows a unit reads. "ring" and "block" only."""
    memory_tucker_rank: int = positive_int_field(default=2)
    """r, rank of the Tucker core; divides `memory_key_size` of "ultramem". "ultramem" and "ultramem_v2" only."""
    memory_num_cores: int = positive_int_field(default=2)
    """h, cores of multi-core scoring; divides `memory_value_size`. "ultramem" and "ultramem_v2" only."""
    memory_tucker_penalty: float | None = None
    """alpha, weight of the loss that keeps the core near to rank one; when None 0.001 in "ultramem", 0 in
    "ultramem_v2", and no other kind has it."""
    memory_tucker_margin: float = 0.15
    """tau, up to which a singular value beyond the first is free. "ultramem" and "ultramem_v2" only."""
    memory_balance_coef: float = 0.0
    """beta, weight of the loss that spreads the choices over the keys. "ultramem_v2" only."""
    memory_improved_init: bool = True
    """Initialise so that the output has the variance of an MLP's; else as PKM does. "ultramem" only."""
    memory_softmax: bool = True
    """Softmax over a head's scores. "pkm" only."""
    memory_shared_query: bool = False
    """All heads read one query. "pkm" only."""
    memory_qk_norm: bool = False
    """Normalise queries and keys. "pkm" and "peer" only; the others always do."""
    memory_activation: str | None = "gelu"
    """Of an expert's neuron, "gelu", "relu" or None. "peer" only."""

    def __post_init__(self, **kwargs):
        """Refuses unknown keywords and fills the fields whose default follows from others."""
        names = {f.name for f in fields(self)}
        for name in kwargs:
            if name not in _TRANSFORMERS_KEYWORDS and not name.startswith("_"):
                nearest = get_close_matches(name, names, n=1, cutoff=0.5)
                advice = f"did you mean {nearest[0]}?" if nearest else "see UltraMemConfig for the fields"
                raise ValueError(f"unknown field {name}={kwargs[name]!r}: {advice}")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not divisible by "
                    f"num_attention_heads={self.num_attention_heads}: change one, or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        super().__post_init__(**kwargs)

    @property
    def block_ffns(self) -> list[str]:
        """The feed-forward branch of every block."""
        return [self.ffn] * self.num_hidden_layers if isinstance(self.ffn, str) else list(self.ffn)

    @property
    def memory_unit_blocks(self) -> list[tuple[int, int]]:
        """The memory units as 0-based pairs: the block read, and the block after which the output is added."""
        blocks = []
        for unit in self.memory_units:
            read, _, add = unit.partition(":")
            if not (read.isdecimal() and add.isdecimal()):
                raise ValueError(f"memory_units has {unit!r}: write the two blocks of a unit like '3:7'")
            blocks.append((int(read) - 1, int(add) - 1))
        return blocks

    @property
    def layer_types(self) -> list[str]:
        """What transformers' caches keep for each block: keys and values, and the convolution's input if "hybrid"."""
        convolved = self.memory is not None and self.memory_query_conv_size > 1
        reading = {read for read, _ in self.memory_unit_blocks} if convolved else set()
        return ["hybrid" if block in reading else "full_attention" for block in range(self.num_hidden_layers)]

    def validate_rates(self):
        """Refuses dropouts that are no probabilities."""
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1): give 0.0 for none")

    def validate_attention(self):
        """Refuses heads that cannot be grouped or rotated."""
        assert self.num_key_value_heads is not None  # filled by __post_init__
        assert self.head_dim is not None
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by "
                f"num_key_value_heads={self.num_key_value_heads}: choose one of its divisors"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd: rotary embeddings turn pairs, so give an even number")

    def validate_feed_forward(self):
        """Refuses unknown branches, lists of the wrong length and impossible experts."""
        branches = self.block_ffns
        for branch in branches:
            if branch not in FEED_FORWARDS:
                raise ValueError(f"ffn={branch!r} is unknown: choose from {', '.join(FEED_FORWARDS)}")
        if len(branches) != self.num_hidden_layers:
            raise ValueError(
                f"ffn lists {len(branches)} branches for num_hidden_layers={self.num_hidden_layers}: "
                "give one a block, or one name for all"
            )
        if "moe" in branches and self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} is more than num_experts={self.num_experts}: lower it"
            )
        if self.num_shared_experts < 0:
            raise ValueError(f"num_shared_experts={self.num_shared_experts} is negative: give 0 for none")

    def validate_memory_units(self):
        """Refuses units without memory, memory without units, and units out of range, backwards or reading twice."""
        if self.memory is not None and self.memory not in MEMORIES:
            raise ValueError(f"memory={self.memory!r} is unknown: choose from {', '.join(MEMORIES)}, or None")
        if (self.memory is None) != (not self.memory_units):
            raise ValueError(
                f"memory={self.memory!r} with memory_units={self.memory_units}: give both, such as "
                f"memory='ultramem' with memory_units=['3:7'], or neither"
            )
        readers: dict[int, str] = {}
        for unit, (read, add) in zip(self.memory_units, self.memory_unit_blocks, strict=True):
            if not (0 <= read < self.num_hidden_layers and 0 <= add < self.num_hidden_layers):
                raise ValueError(
                    f"memory_units has {unit!r}: blocks are counted from 1 to "
                    f"num_hidden_layers={self.num_hidden_layers}"
                )
            if add < read:
                raise ValueError(f"memory_units has {unit!r}, which points backwards: write '{add + 1}:{read + 1}'")
            if read in readers:
                raise ValueError(f"memory_units has {readers[read]!r} and {unit!r}: only one unit may read at a block")
            readers[read] = unit

    def validate_memory_sizes(self):
        """Refuses memory layers whose sizes are missing or do not fit together."""
        if self.memory is None:
            return
        for name in ("memory_num_keys", "memory_key_size", "memory_value_size", "memory_top_k"):
            if getattr(self, name) is None:
                raise ValueError(f"memory={self.memory!r} needs {name}, which is None: give a positive integer")
        if self.memory == "ultramem_v2" and self.memory_pre_value_size is None:
            raise ValueError("memory='ultramem_v2' needs memory_pre_value_size, which is None: give a positive integer")
        if self.memory == "peer" and self.memory_value_size != self.hidden_size:
            raise ValueError(
                f"memory_value_size={self.memory_value_size} with memory='peer': an expert is as wide as "
                f"hidden_size={self.hidden_size}, so give that"
            )
        assert self.memory_num_keys is not None
        assert self.memory_top_k is not None
        root = isqrt(self.memory_expansion)
        if root**2 != self.memory_expansion:
            raise ValueError(
                f"memory_expansion={self.memory_expansion} is not a square: give {root**2} or {(root + 1) ** 2}"
            )
        num_keys = root * isqrt(self.memory_window * self.memory_num_keys**2)
        if self.memory_top_k > min(num_keys, MAX_CANDIDATES) ** 2:
            raise ValueError(
                f"memory_top_k={self.memory_top_k} is more than the {min(num_keys, MAX_CANDIDATES) ** 2} slots that "
                f"{num_keys} logical keys a side (sqrt(memory_window * memory_expansion) * memory_num_keys) offer, at "
                f"most {MAX_CANDIDATES} a side: lower it, or raise memory_num_keys"
            )
        if self.memory_query_conv_size < 0:
            raise ValueError(f"memory_query_conv_size={self.memory_query_conv_size} is negative: give 0 for none")
        divided = {"ultramem": [("memory_key_size", "memory_tucker_rank"), ("memory_value_size", "memory_num_cores")]}
        divided["ultramem_v2"] = divided["ultramem"][1:]
        for width, parts in divided.get(self.memory, []):
            if getattr(self, width) % getattr(self, parts):
                raise ValueError(
                    f"{width}={getattr(self, width)} is not divisible by {parts}={getattr(self, parts)}: "
                    "change one of them"
                )

    def validate_memory_sharing(self):
        """Refuses windows that the units cannot form."""
        if self.memory_sharing not in SHARINGS:
            raise ValueError(f"memory_sharing={self.memory_sharing!r} is unknown: choose from {', '.join(SHARINGS)}")
        units, window = len(self.memory_units), self.memory_window
        if self.memory_sharing in ("own", "all"):
            if window != 1:
                raise ValueError(
                    f"memory_window={window} has no meaning for memory_sharing={self.memory_sharing!r}: leave it at 1, "
                    "or use memory_sharing='ring'"
                )
        elif window > units:
            raise ValueError(f"memory_window={window} is more than the {units} memory_units: give at most {units}")
        elif self.memory_sharing == "block" and units % window:
            raise ValueError(
                f"memory_window={window} does not divide the {units} memory_units into blocks: give one of its divisors"
            )

    def validate_memory_kind(self):
        """Refuses settings that the chosen kind of memory would ignore."""
        if self.memory is None:
            return
        defaults = {f.name: f.default for f in fields(self)}
        for name, kinds in _KINDS_THAT_READ.items():
            if self.memory not in kinds and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no meaning for memory={self.memory!r}: "
                    f"leave it at {defaults[name]!r}, or use memory={' or '.join(map(repr, kinds))}"
                )
        if self.memory in ("memory_plus", "peer") and self.memory_expansion != 1:
            raise ValueError(
                f"memory_expansion={self.memory_expansion} has no meaning for memory={self.memory!r}: give 1"
            )
        if self.memory_activation not in ACTIVATIONS:
            known = ", ".join(map(str, ACTIVATIONS))
            raise ValueError(f"memory_activation={self.memory_activation!r} is unknown: choose from {known}")
