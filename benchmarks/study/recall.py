"""Asks a trained model for the facts of people: how many it recalls exactly, and how many bits it has stored."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.study.biographies import ATTRIBUTES, Person
from ultramem.data.header import TOKENIZER_FILE, Header
from ultramem.models.modeling_ultramem import UltraMemForCausalLM

ASKED_PERSONS = 500
BATCH_SIZE = 250


@torch.no_grad()
def quiz(model: UltraMemForCausalLM, persons: list[Person], data: Path) -> dict[str, Any]:
    """Ask for every attribute of the first 500 people in its first wording, at the start of a document.

    Args:
        model: trained on the biographies of `persons`.
        persons: all of them.
        data: the prepared folder, for its tokenizer.

    Returns:
        "exact_recall": share of the facts of which every token is the most likely one; "bits_a_person": over the
        attributes, the bits of the fact less those of its loss, 0 at least (a lower bound of what is stored: Allen-Zhu
        and Li, theorem 3.2, without the names); "stored_bits": that of all people; "attributes": both for each.
    """
    tokenizer = Tokenizer.from_file(str(data / TOKENIZER_FILE))
    separator = Header.load(data).separator_id
    asked = persons[:ASKED_PERSONS]
    was_training = model.training
    model.eval()
    found = {}
    for name, attribute in ATTRIBUTES.items():
        losses, recalled = _ask(model, tokenizer, separator, attribute.wordings[0], asked, name)
        loss_bits = float(losses.mean()) / math.log(2)
        found[name] = {"exact_recall": float(recalled.mean()), "bits": max(0.0, attribute.bits - loss_bits)}
    model.train(was_training)
    bits_a_person = sum(result["bits"] for result in found.values())
    return {
        "exact_recall": sum(result["exact_recall"] for result in found.values()) / len(found),
        "bits_a_person": bits_a_person,
        "stored_bits": bits_a_person * len(persons),
        "persons": len(persons),
        "attributes": found,
    }


def _ask(
    model: UltraMemForCausalLM, tokenizer: Tokenizer, separator: int, wording: str, persons: list[Person], name: str
) -> tuple[Tensor, Tensor]:
    """The loss in nats of each person's value, and whether it is recalled: two `(P,)` float32."""
    before, _, after = wording.partition(" {value}")
    losses, recalled = [], []
    for start in range(0, len(persons), BATCH_SIZE):
        batch = persons[start : start + BATCH_SIZE]
        prompts = [tokenizer.encode(before.format(name=person.name)).ids for person in batch]
        values = [tokenizer.encode(f" {person.facts[name]}{after}").ids for person in batch]
        length = max(len(prompt) + len(value) for prompt, value in zip(prompts, values, strict=True)) + 1
        tokens = torch.full((len(batch), length), separator)
        wanted = torch.zeros(len(batch), length, dtype=torch.bool)
        for row, (prompt, value) in enumerate(zip(prompts, values, strict=True)):
            end = 1 + len(prompt) + len(value)
            tokens[row, 1:end] = torch.tensor(prompt + value)
            wanted[row, 1 + len(prompt) : end] = True
        tokens, wanted = tokens.to(model.device), wanted.to(model.device)[:, 1:]
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(wanted.shape)
        losses.append((loss * wanted).sum(dim=1).cpu())
        right = logits.argmax(dim=-1) == tokens[:, 1:]
        recalled.append((right | ~wanted).all(dim=1).float().cpu())
    return torch.cat(losses), torch.cat(recalled)
