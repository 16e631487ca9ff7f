"""A run of a second, and the data for it."""

import zlib
from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer, models

from ultramem.data.header import TOKENIZER_FILE, Header, Shard, Split, sha256_of
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.train.config import OptimizerConfig, ParallelConfig, TrainConfig
from ultramem.train.journal import read_journal

VOCABULARY = 64
CLOCK = ("seconds", "tokens_per_second")


def markov_tokens(count, seed):
    """Text that can be learnt: three tokens of four follow from the one before."""
    random = np.random.default_rng(seed)
    noise, surprise = random.integers(0, VOCABULARY, count), random.random(count) < 0.25
    tokens = np.zeros(count, dtype=np.uint16)
    for i in range(1, count):
        tokens[i] = noise[i] if surprise[i] else (tokens[i - 1] * 5 + 7) % VOCABULARY
    return tokens


def write_data(folder, seed=0):
    folder.mkdir()
    vocabulary = {f"t{token}": token for token in range(VOCABULARY)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="t0")).save(str(folder / TOKENIZER_FILE))
    splits = {}
    for split, count in (("train", 4000), ("validation", 700)):
        tokens = markov_tokens(count, seed + len(split))
        (folder / f"{split}-00000.bin").write_bytes(tokens.tobytes())
        shard = Shard(file=f"{split}-00000.bin", num_tokens=count, crc32=zlib.crc32(tokens.tobytes()))
        splits[split] = Split(num_tokens=count, num_documents=1, num_bytes=4 * count, shards=[shard])
    header = Header(
        dtype="uint16",
        vocab_size=VOCABULARY,
        separator="t0",
        separator_id=0,
        tokenizer_sha256=sha256_of(folder / TOKENIZER_FILE),
        num_empty_documents=0,
        splits=splits,
        inputs=[],
        settings={},
    )
    header.save(folder)
    return folder


def tiny_config(**changes):
    """A run of a second with everything that has state: memory, dropout, accumulation, a moving learning rate."""
    model = UltraMemConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        dropout=0.1,
        memory="ultramem",
        memory_units=["1:2"],
        memory_num_keys=8,
        memory_key_size=16,
        memory_value_size=16,
        memory_top_k=4,
    )
    config = TrainConfig(
        name="tiny",
        model=model,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=4),
        parallel=ParallelConfig(tables="columns"),
        steps=20,
        batch_size=4,
        micro_batch_size=3,
        sequence_length=16,
        log_every_steps=1,
        evaluate_every_steps=10,
        evaluate_batches=3,
        checkpoint_every_steps=10,
    )
    return replace(config, **changes)


def losses(run):
    """All that a run measured, but for what depends on the clock."""
    lines = read_journal(run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]
