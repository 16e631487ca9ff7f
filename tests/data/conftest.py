import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ultramem.data.header import TOKENIZER_FILE, Header, sha256_of
from ultramem.data.shards import ShardWriter

WORDS = ["we", "the", "people", "of", "a", "more", "perfect", "union", "do", "establish", "justice", "and", "peace"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sixty documents, some with what text readers stumble over."""
    generator = np.random.default_rng(0)
    plain = [" ".join(generator.choice(WORDS, size=80)) + f"\nNo. {number}.\n" for number in range(56)]
    return [
        *plain,
        "naïve — “quoted” 日本語 🙂",
        " leading space",
        "tab\tand\n\n\nblank lines",
        'a "<|endoftext|>" inside',
    ]


@pytest.fixture
def jsonl(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text, "source": "test"}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[..., Path]:
    """Writes prepared data with the given tokens, without a tokenizer that could have made them."""

    def write(tokens: np.ndarray, shard_tokens: int = 1 << 20, dtype: str = "uint16") -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / TOKENIZER_FILE).write_text("{}")
        splits = {}
        for name in ("train", "validation"):
            with ShardWriter(folder, name, np.dtype(dtype), shard_tokens) as writer:
                writer.write(tokens, num_bytes=4 * len(tokens))
            splits[name] = writer.split
        Header(
            dtype=dtype,
            vocab_size=int(tokens.max()) + 1,
            separator="<|endoftext|>",
            separator_id=0,
            tokenizer_sha256=sha256_of(folder / TOKENIZER_FILE),
            num_empty_documents=0,
            splits=splits,
            inputs=[],
            settings={},
        ).save(folder)
        return folder

    return write
