"""Activation checkpointing: blocks and memory layers compute their activations again in the backward pass."""

from typing import Any


def checkpoint_activations(model: Any) -> None:
    """Let a model keep the inputs of its blocks and memory layers only, and what its retrievals chose.

    A retrieval that is computed again could meet a tie and choose other rows, so the first choice is kept
    (`ultramem.models.modeling_ultramem`). The reads of a sharded table are exchanged again.

    Args:
        model: a language model of ours; in training mode it then needs less memory and more time.
    """
    # transformers 5.23 renamed it and warns of the old name; 5.17 has only that.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
