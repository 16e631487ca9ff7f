"""A tiny corpus and a tiny trained model for the tests of everything that stands on them."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

# For tensors as small as the tests' a second thread costs more than it gains. Children inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Without a GPU the kernels' logic runs in Triton's interpreter, which must be chosen before Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from ultramem import recipes
from ultramem.data.prepare import prepare
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig
from ultramem.train.trainer import train

NOUNS = ("memory", "table", "row", "key", "query", "value", "core", "head", "layer", "block", "token", "loss", "batch")
VERBS = ("reads", "writes", "keeps", "finds", "sums", "scales", "drops", "splits", "shares", "learns")


def tiny(name: str) -> TrainConfig:
    """The recipe `name` of the cpu family, small enough to train in a second."""
    config = recipes.get(name)
    config = replace(
        config,
        optimizer=replace(config.optimizer, warmup_steps=None),
        steps=4,
        batch_size=4,
        sequence_length=32,
        evaluate_every_steps=2,
        evaluate_batches=1000,
        checkpoint_every_steps=4,
        log_every_steps=1,
    )
    return with_model(
        config,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        max_position_embeddings=48,
        moe_intermediate_size=8,
        num_experts=4,
        memory_num_keys=8,
        memory_key_size=8,
        memory_value_size=8,
        memory_top_k=4,
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: 60 documents of made-up sentences, a vocabulary of 300."""
    words = random.Random(0)
    folder = tmp_path_factory.mktemp("text")
    for number in range(60):
        sentences = (f"The {words.choice(NOUNS)} {words.choice(VERBS)} the {words.choice(NOUNS)}." for _ in range(40))
        (folder / f"{number}.txt").write_text(" ".join(sentences))
    data = tmp_path_factory.mktemp("data") / "tiny"
    prepare([str(folder)], data, vocab_size=300, validation_fraction=0.1)
    return data


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a tiny UltraMem model."""
    folder = tmp_path_factory.mktemp("runs") / "ultramem"
    train(tiny("cpu-ultramem"), prepared, folder)
    return folder
