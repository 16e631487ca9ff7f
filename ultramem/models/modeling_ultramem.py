"""One decoder for the whole family: UltraMem, product-key memory, mixture of experts, dense.

A memory unit k:k' reads the normed input h of block k's feed-forward branch, and its output is added after block k'
(UltraMem, arXiv 2411.12364, section 3.1 and figure 4).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin
from transformers.generation import CompileConfig, GenerationMixin
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults

from ultramem.layers.memory import MemoryLayer, MemoryOutput, MemoryRead
from ultramem.layers.mlp import GELUMLP, SwiGLU
from ultramem.layers.moe import MoE
from ultramem.layers.query import Context, ConvState
from ultramem.layers.tables import Table
from ultramem.models.attention import Attention
from ultramem.models.block import Block
from ultramem.models.branches import memory_layer, memory_tables
from ultramem.models.cache_keyword import CACHE_KEYWORD, cache_keyword, takes_cache_keyword
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.models.decoding import DecodeGraph
from ultramem.models.loss import NextTokenLoss
from ultramem.models.outputs import UltraMemCausalLMOutput, UltraMemModelOutput
from ultramem.models.overlap import Running, can_overlap
from ultramem.models.sharing import unit_windows

# Computed again, a retrieval could meet a tie and choose other rows: checkpointing keeps the first choice.
_keep_slots = partial(
    create_selective_checkpoint_contexts,
    [torch.ops.ultramem.select_keys.default, torch.ops.ultramem.rescore.default],
)


class UltraMemPreTrainedModel(PreTrainedModel):
    """Initialisation, and what transformers needs to know of the family."""

    config: UltraMemConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = [CACHE_KEYWORD]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module) -> None:
        """All initialisation, in one place.

        | what | variance |
        |---|---|
        | embedding | 1; with a tied output layer 1 / D |
        | matrices | 1 / inputs |
        | last matrix of attention, MLP, experts | 1 / (2 L inputs): all 2 L branches add up to 1 |
        | memory layers and tables | so that a layer's output has 1 / (2 L) too (UltraMem, section 3.5) |
        | product keys, Memory+ | values 1 / D_v, as published |
        | norms | weight 1 |
        """
        if isinstance(module, (Attention, SwiGLU, GELUMLP, MoE)):
            module.reset_parameters(output_gain=(2 * self.config.num_hidden_layers) ** -0.5)
        elif isinstance(module, (MemoryLayer, Table)):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5 if self.config.tie_word_embeddings else 1)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        else:
            super()._init_weights(module)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For classes outside of transformers the stock method skips every module that has no parameters of its own, in
        # fear of initialisation that overwrites what was loaded. Ours is all by `torch.nn.init`, which is guarded; and
        # a memory layer, which has only submodules, must be reached.
        super()._initialize_weights(module, is_custom_code=False)


class UltraMemModel(UltraMemPreTrainedModel):
    """The decoder without its output layer: embedding, blocks, memory units, final norm.

    `memory_layers[i]` belongs to `config.memory_units[i]` and reads `tables[unit_tables[i]]`. With `reads_ahead` a unit
    k:k' reads at block k and projects after block k': what other processes pool for it is on its way in between, and so
    are its gradients in the backward pass.

    Args:
        config: the model's configuration.
        table_class: of the tables; `UndrawnTable` where they are to be divided.

    Example:
        >>> model = UltraMemModel(UltraMemConfig(vocab_size=50, hidden_size=16, intermediate_size=32))
        >>> model(torch.randint(50, (2, 7))).last_hidden_state.shape
        torch.Size([2, 7, 16])
    """

    def __init__(self, config: UltraMemConfig, *, table_class: type[Table] = Table) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.unit_blocks = config.memory_unit_blocks
        self.memory_layers = nn.ModuleList(memory_layer(config, unit) for unit in range(len(config.memory_units)))
        self.tables = nn.ModuleList(memory_tables(config, table_class))
        self.unit_tables = [window.table for window in unit_windows(config)]
        self.memory_dropout = nn.Dropout(config.dropout)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]  # it reads the rotary fields alone
        self.reads_ahead = False  # set by `ultramem.distributed.parallelize`
        self.gradient_checkpointing = False
        self.post_init()

    @takes_cache_keyword
    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_memory: bool = False,
        **kwargs,
    ) -> UltraMemModelOutput:
        """Runs the decoder.

        Args:
            input_ids: `(B, T)` int64; or else `inputs_embeds`.
            attention_mask: `(B, past + T)`, 0 at padding; or what `create_masks_for_generate` makes of it.
            position_ids: `(B, T)`; counted on from the cache when None.
            past_key_values: the cache of the tokens before; from transformers 5.24 on it may be called `cache`.
            inputs_embeds: `(B, T, D)`.
            use_cache: make and return a cache; `config.use_cache` when None.
            output_hidden_states: return the input of every block; `config.output_hidden_states` when None.
            output_memory: return what every memory unit returned.
            kwargs: passed on to the attention kernel.

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        masks = (
            attention_mask
            if isinstance(attention_mask, dict)
            else create_masks_for_generate(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **cache_keyword(past_key_values),
            )
        )
        # Only now: positions that begin anew mean packed sequences in a mask, and to look for some waits for the GPU.
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0) + past
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids=position_ids)

        hidden_states = inputs_embeds
        auxiliary_losses: list[Tensor] = []
        inputs: list[Tensor] = []
        running: dict[int, Running] = {}
        memory: dict[int, MemoryOutput] = {}
        layers: Any = self.memory_layers
        beside = can_overlap(hidden_states)
        for index, block in enumerate(self.layers):
            if output_hidden_states:
                inputs.append(hidden_states)
            hidden_states, normed, block_loss = block(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=masks["full_attention"],
                **cache_keyword(past_key_values),
                **kwargs,
            )
            if block_loss is not None:
                auxiliary_losses.append(block_loss)
            for unit, (read, add) in enumerate(self.unit_blocks):
                if read == index:
                    read_memory = partial(
                        self._read_memory,
                        unit,
                        padding_mask=masks.get("linear_attention"),
                        past_key_values=past_key_values,
                    )
                    running[unit] = Running(read_memory, normed, beside=beside and add > read)
                if add == index:
                    arrived = running.pop(unit).wait()
                    if isinstance(arrived, MemoryRead):
                        arrived = layers[unit].output(arrived)
                    auxiliary_losses.append(arrived.auxiliary_loss)
                    hidden_states = hidden_states + self.memory_dropout(arrived.hidden_states)
                    if output_memory:
                        memory[unit] = arrived

        hidden_states = self.norm(hidden_states)
        if not auxiliary_losses:
            auxiliary_losses.append(torch.zeros((), device=hidden_states.device))
        return UltraMemModelOutput(
            last_hidden_state=hidden_states,
            auxiliary_loss=torch.stack(auxiliary_losses).sum(),
            hidden_states=(*inputs, hidden_states) if output_hidden_states else None,
            memory=tuple(memory[unit] for unit in range(len(memory))) if output_memory else None,
            **cache_keyword(past_key_values),
        )

    def _read_memory(
        self, unit: int, normed: Tensor, padding_mask: Tensor | None, past_key_values: Cache | None
    ) -> MemoryOutput | MemoryRead:
        """Runs a memory unit, or its first phase, on the normed input `(B, T, D)` of its block's own branch."""
        layer: Any = self.memory_layers[unit]
        table = self.tables[self.unit_tables[unit]]
        run = layer.read if self.reads_ahead else layer
        if padding_mask is not None:  # `(B, T)`: what stands at padding must not reach a token by the convolution
            normed = normed * padding_mask.unsqueeze(-1)
        context: Context = None
        if past_key_values is not None and self.config.memory_query_conv_size > 1:
            context = self._conv_context(normed, self.unit_blocks[unit][0], past_key_values)
        if self.gradient_checkpointing and self.training:
            kept = checkpoint(run, normed, table, context, use_reentrant=False, context_fn=_keep_slots)
            return MemoryRead(*kept) if self.reads_ahead else MemoryOutput(*kept)
        return run(normed, table, context)

    def _conv_context(self, normed: Tensor, block: int, past_key_values: Cache) -> Tensor | ConvState:
        """The inputs of a convolution before `normed`, which the cache keeps for the next call, or the layer does."""
        kept = past_key_values.layers[block]
        if isinstance(kept, LinearAttentionCacheLayerMixin) and not torch.is_grad_enabled():
            state = kept.conv_states[0]
            if state is not None and kept.has_previous_state[0] and not kept.record_past:
                return ConvState(state.transpose(1, 2))
        reach = self.config.memory_query_conv_size - 1
        states = past_key_values.update_conv_state(normed.transpose(1, 2), block, conv_kernel_size=reach)
        return states.transpose(1, 2)[:, : -normed.shape[1]][:, -reach:]


class UltraMemForCausalLM(UltraMemPreTrainedModel, GenerationMixin):
    """The language model: `UltraMemModel` and an output layer.

    Args:
        config: the model's configuration.
        table_class: of the tables; `UndrawnTable` where they are to be divided.

    Example:
        >>> model = UltraMemForCausalLM(UltraMemConfig(vocab_size=50, hidden_size=16, intermediate_size=32))
        >>> tokens = torch.randint(50, (2, 7))
        >>> model(tokens, labels=tokens).loss.backward()
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: UltraMemConfig, *, table_class: type[Table] = Table) -> None:
        super().__init__(config)
        self.model = UltraMemModel(config, table_class=table_class)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.next_token_loss = NextTokenLoss()
        self.post_init()

    @takes_cache_keyword
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_memory: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> UltraMemCausalLMOutput:
        """Logits without labels; with labels the loss, and logits only if `logits_to_keep` asks for some.

        Args:
            input_ids: `(B, T)` int64; or else `inputs_embeds`.
            attention_mask: `(B, past + T)`, 0 at padding.
            position_ids: `(B, T)`; counted on from the cache when None.
            past_key_values: the cache of the tokens before; from transformers 5.24 on it may be called `cache`.
            inputs_embeds: `(B, T, D)`.
            labels: `(B, T)` int64, the same tokens as `input_ids`: they are shifted here. -100 is not predicted.
            use_cache: make and return a cache; when None, `config.use_cache` without labels, else no.
            logits_to_keep: logits of so many last positions, or of the positions in this tensor; 0 for all.
            output_memory: return what every memory unit returned.
            num_items_in_batch: predicted tokens of a whole accumulated batch. The loss is then this batch's share of
                the mean over all of them, so that the shares add up.
            kwargs: `output_hidden_states`, and what the attention kernel takes.

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False if use_cache is None and labels is not None else use_cache,
            output_memory=output_memory,
            **kwargs,
        )
        loss = cross_entropy = logits = None
        if labels is not None:
            cross_entropy, count = self.next_token_loss(self.lm_head, outputs.last_hidden_state, labels)
            loss = cross_entropy + outputs.auxiliary_loss
            if num_items_in_batch is not None:
                loss = loss * count / num_items_in_batch
            cross_entropy = cross_entropy.detach()
        if labels is None or isinstance(logits_to_keep, Tensor) or logits_to_keep:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept])
        return UltraMemCausalLMOutput(
            loss=loss,
            logits=logits,
            cross_entropy=cross_entropy,
            auxiliary_loss=outputs.auxiliary_loss,
            hidden_states=outputs.hidden_states,
            memory=outputs.memory,
            **cache_keyword(getattr(outputs, CACHE_KEYWORD)),
        )

    def compile_regions(self) -> None:
        """Compile what has small operations to fuse: every block, a memory's queries, and the logits' cross-entropy.

        For training, and for decoding before a `DecodeGraph` is captured. Blocks are alike, so the code of the first
        serves all: an eighth of what eight blocks in one graph are to compile. Between them lie our own operations,
        into which a compiler cannot look, and what processes send to each other.
        """
        queries: list[Any] = [layer.query for layer in self.model.memory_layers]
        for region in (*self.model.layers, *queries):
            region.compile()
        self.next_token_loss.cross_entropy.compile(dynamic=True)  # the last chunk is shorter

    def get_compiled_call(self, compile_config: CompileConfig | None) -> Callable:
        """What `generate` calls for every token after the prompt, on a GPU with a static cache.

        One CUDA graph of the whole step, captured within a second; `torch.compile` where `generate` is given a
        `compile_config`.
        """
        return DecodeGraph(self) if compile_config is None else super().get_compiled_call(compile_config)
