"""A decoding step as one CUDA graph: the host launches it once, whatever the number of blocks and memory units."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ultramem.layers.kept import Kept
from ultramem.models.cache_keyword import takes_cache_keyword


class DecodeGraph:
    """A model's forward pass for the next token of every sequence, captured at its first call and replayed after.

    Called like the model. The cache is static (transformers' `StaticCache`) and has seen the prompt; tensors among the
    arguments are copied to where the graph reads them. Other shapes, another cache and other settings are captured
    anew. The output's tensors are the graph's own: the next call overwrites them.

    A model whose regions are compiled (`ultramem.UltraMemForCausalLM.compile_regions`) is captured compiled: fewer
    kernels, compiled at the first call. Eager attention, of which a compiler can fuse more, needs transformers
    5.21 or newer: before, its mask copied a number from the host.

    A graph reads the weights where they lie, and beside them what layers keep of them for inference
    (`ultramem.layers.kept.Kept`): after changing the weights make a new one.

    Args:
        model: in evaluation mode on a GPU.

    Example:
        >>> cache = StaticCache(config=model.config, max_cache_len=2048)
        >>> tokens = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
        >>> step = DecodeGraph(model)
        >>> for _ in range(100):
        ...     tokens = step(input_ids=tokens, past_key_values=cache).logits.argmax(-1)
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self._key: Any = None

    @takes_cache_keyword
    @torch.no_grad()
    def __call__(self, *, past_key_values: Cache, **inputs) -> ModelOutput:
        """One step; see `ultramem.UltraMemForCausalLM.forward` for the arguments."""
        leaves, structure = tree_flatten(inputs)
        key = (id(past_key_values), structure, [_static_part(leaf) for leaf in leaves])
        if key != self._key:
            self._capture(past_key_values, leaves, structure)
            self._key = key
        for own, given in zip(self._leaves, leaves, strict=True):
            if isinstance(own, Tensor):
                own.copy_(given)
        self._graph.replay()
        return self._output

    def _capture(self, cache: Cache, leaves: list[Any], structure: TreeSpec) -> None:
        self._key = None
        self._cache = cache  # its tensors are the graph's
        self._leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs = tree_unflatten(self._leaves, structure)

        def step() -> ModelOutput:
            return self.model(past_key_values=cache, **inputs)

        with unchanged(cache):
            _warm_up(step)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = step()
        # What the layers keep would be freed when they drop it, but the graph goes on reading it.
        members = [member for module in self.model.modules() for member in vars(module).values()]
        self._kept = [member.value for member in members if isinstance(member, Kept)]


def _static_part(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _warm_up(step: Callable[[], object]) -> None:
    """Compiles kernels and fills what is kept of the weights, neither of which a capture may do."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def unchanged(cache: Cache) -> Iterator[None]:
    """Takes back the step that was taken within it.

    Keys and values of a step lie beyond the cache's length, where the next step writes them again; its length and the
    states of the convolutions are restored.
    """
    states = [state for layer in cache.layers for state in _states(layer)]
    copies = [state.clone() for state in states]
    yield
    for state, copy in zip(states, copies, strict=True):
        state.copy_(copy)


def _states(layer: Any) -> list[Tensor]:
    convolutions = getattr(layer, "conv_states", {}).values()
    return [layer.cumulative_length, *(state for state in convolutions if state is not None)]
