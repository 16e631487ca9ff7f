"""`ultramem prepare`."""

from pathlib import Path
from typing import Annotated

import tyro

from ultramem.data.formats import END_OF_DOCUMENT
from ultramem.data.prepare import prepare


def command(
    inputs: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    /,
    *,
    out: Path,
    tokenizer: str | None = None,
    vocab_size: int = 8192,
    text_field: str = "text",
    validation_fraction: float = 0.01,
    seed: int = 0,
    separator: str = END_OF_DOCUMENT,
    max_document_chars: int = 1 << 17,
) -> None:
    """Turn text into token files for training, split into training and validation by document.

    ultramem prepare corpus/ notes.jsonl "books/*.txt" --out data/corpus --vocab-size 4096

    Args:
        inputs: Files, folders or quoted globs of .txt, .md, .jsonl or .parquet (also .gz, .xz, .zst), or data sets of
            the Hugging Face hub as hf:owner/name.
        out: The folder to make.
        tokenizer: A tokenizer.json, a folder with one, or hf:owner/name; without it a byte-level BPE is trained on the
            text.
        vocab_size: Size of the vocabulary of a BPE that is trained.
        text_field: Field of JSON lines, or column of Parquet files, that holds the text.
        validation_fraction: Share of the documents that is kept for validation.
        seed: Another seed keeps other documents for validation.
        separator: The token that ends each document, such as </s> for a Llama's tokenizer.
        max_document_chars: A longer document is cut into several.
    """
    prepare(
        inputs,
        out,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        text_field=text_field,
        validation_fraction=validation_fraction,
        seed=seed,
        separator=separator,
        max_document_chars=max_document_chars,
    )
