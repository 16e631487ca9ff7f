"""Text from a trained model, streamed as it is chosen."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast, TextStreamer

from ultramem.models.modeling_ultramem import UltraMemForCausalLM


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the words are those of transformers."""

    max_new_tokens: int = 128
    """Tokens to write at most; the end of the model's context comes first where it is nearer."""
    temperature: float = 0.8
    """Below 1 sharpens the distribution, above 1 flattens it; 0 always takes the likeliest token."""
    top_k: int = 50
    """Choose among this many likeliest tokens only; 0 for all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that hold this share of the probability."""
    num_beams: int = 1
    """Beams of a beam search; with more than one the text comes at the end, not token by token."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens less likely that were there already."""
    seed: int | None = None
    """Makes the choice repeatable."""

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "must be at least 1")
        _require(
            self.temperature >= 0, "temperature", self.temperature, "cannot be negative; 0 takes the likeliest token"
        )
        _require(self.top_k >= 0, "top_k", self.top_k, "cannot be negative; 0 considers all tokens")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "must be above 0 and at most 1")
        _require(self.num_beams >= 1, "num_beams", self.num_beams, "must be at least 1")
        _require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "must be above 0")


def _require(condition: bool, name: str, value: float, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value}: it {rule}")


def generate(
    model: UltraMemForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    sampling: Sampling | None = None,
    write: Callable[[str], None] = lambda text: None,
) -> str:
    """Continue a prompt.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        prompt: text to continue; an empty one begins a document.
        sampling: how tokens are chosen.
        write: is given the text, prompt included, in pieces as they are ready.

    Returns:
        Prompt and continuation.

    Raises:
        ValueError: the prompt leaves no room in the model's context.

    Example:
        >>> generate(model, tokenizer, "Once upon a time", Sampling(max_new_tokens=20), write=print)
    """
    sampling = sampling or Sampling()
    tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"] if prompt else None
    if tokens is None or tokens.shape[1] == 0:
        tokens = torch.tensor([[tokenizer.bos_token_id]])
    length, context = tokens.shape[1], model.config.max_position_embeddings
    if length >= context:
        raise ValueError(
            f"the prompt is {length} tokens long and the model's context {context}, which the answer needs room in: "
            "shorten the prompt"
        )
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    streamer = _Streamer(tokenizer, write) if sampling.num_beams == 1 else None
    generated = model.generate(  # type: ignore[misc]
        tokens.to(model.device),
        attention_mask=torch.ones_like(tokens).to(model.device),
        streamer=streamer,
        max_new_tokens=min(sampling.max_new_tokens, context - length),
        num_beams=sampling.num_beams,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_sampling_options(sampling),
    )
    text = str(tokenizer.decode(generated[0], skip_special_tokens=True))
    if streamer is None:
        write(text)
    return text


def _sampling_options(sampling: Sampling) -> dict:
    # transformers warns about sampling options that a greedy choice does not use.
    if sampling.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }


class _Streamer(TextStreamer):
    """Hands finished pieces of text to a function instead of printing them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, write: Callable[[str], None]):
        super().__init__(tokenizer, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._write(text)
