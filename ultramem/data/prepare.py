"""Turns text into a folder of token shards: `train-*.bin`, `validation-*.bin`, `tokenizer.json` and `header.json`."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tokenizers import Tokenizer

from ultramem.data.corpus import SPLITS, Corpus, Document, sample, split_documents
from ultramem.data.errors import DataError
from ultramem.data.folder import leftovers, whole_folder
from ultramem.data.formats import END_OF_DOCUMENT
from ultramem.data.header import HEADER_FILE, TOKENIZER_FILE, Header, sha256_of
from ultramem.data.shards import ShardWriter
from ultramem.data.sources import find_sources, fingerprint
from ultramem.data.tokenizer import encode, load_tokenizer, separator_id, train_tokenizer, vocabulary_size
from ultramem.data.tokens import TokenDataset

_SAMPLE_CHARS = 1 << 25
_BATCH_BYTES = 1 << 21


def prepare(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    vocab_size: int = 8192,
    separator: str = END_OF_DOCUMENT,
    text_field: str = "text",
    max_document_chars: int = 1 << 17,
    validation_fraction: float = 0.01,
    seed: int = 0,
    shard_tokens: int = 1 << 27,
    console: Console | None = None,
) -> Header:
    """Tokenizes text into the folder `out`, which appears whole or not at all. What was prepared before is kept.

    Args:
        inputs: files, folders or globs of .txt, .md, .jsonl, .ndjson (each also .gz, .xz, .zst), .json.gz or .parquet;
            or data sets of the Hugging Face hub as hf:owner/name[:configuration[:split]].
        out: the folder to make.
        tokenizer: a JSON file of the library tokenizers, a folder with a tokenizer.json, or hf:owner/name; without
            one, a byte-level BPE is trained on a sample of the training documents, for which the inputs are read twice.
        vocab_size: the size of the vocabulary of a BPE that is trained.
        separator: the token that ends each document.
        text_field: the field of JSON lines, or the column of Parquet files and data sets, that holds the text.
        max_document_chars: a longer document is cut into several, at the end of a line or of a word.
        validation_fraction: the share of the documents for validation; a hash of its text decides for each.
        seed: another seed takes other documents for validation.
        shard_tokens: the most tokens in one file.
        console: where progress and the closing table go; standard error by default.

    Returns:
        The header of the prepared data, with its counts.

    Raises:
        DataError: no input, damaged input, no text, too few documents, a tokenizer that is none, a full disk; or `out`
            holds something else, or the same made with other settings.

    Example:
        >>> header = prepare(["corpus/"], "data/corpus", vocab_size=16384)
        >>> header.splits["train"].num_tokens
        53104377
    """
    _check(vocab_size, max_document_chars, validation_fraction, shard_tokens)
    out = Path(out)
    console = console or Console(stderr=True)
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    sources = find_sources(inputs)
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    settings = {
        "inputs": fingerprint(sources),
        "tokenizer": None if loaded is None else hashlib.sha256(loaded.to_str().encode()).hexdigest(),
        "vocab_size": vocab_size if loaded is None else None,
        "separator": separator,
        "text_field": text_field,
        "max_document_chars": max_document_chars,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "shard_tokens": shard_tokens,
    }
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        header = _prepared_before(out, settings)
        console.print(f"{out} is already prepared.")
        return header
    if unfinished := leftovers(out):
        console.print(f"Unfinished, to be deleted unless another process is at work: {', '.join(map(str, unfinished))}")
    corpus = Corpus(sources, text_field=text_field, max_document_chars=max_document_chars, seed=seed)
    with whole_folder(out) as folder, _progress(console) as progress:
        if loaded is None:
            loaded = _train_tokenizer(corpus, vocab_size, separator, validation_fraction, progress)
        header = _write(corpus, loaded, folder, [*map(str, inputs)], settings, progress)
    console.print(_summary(out, header))
    return header


def _check(vocab_size: int, max_document_chars: int, validation_fraction: float, shard_tokens: int) -> None:
    if vocab_size < 257:
        raise DataError(
            f"vocab_size is {vocab_size}; a byte-level BPE needs 257 at least: all bytes and the separator."
        )
    if not 0 < validation_fraction < 1:
        raise DataError(
            f"validation_fraction is {validation_fraction}; it must lie between 0 and 1, for instance 0.01."
        )
    if max_document_chars < 1 or shard_tokens < 1:
        raise DataError(
            f"max_document_chars is {max_document_chars} and shard_tokens {shard_tokens}; both must be 1 or more."
        )


def _prepared_before(out: Path, settings: dict[str, Any]) -> Header:
    if not (out / HEADER_FILE).is_file():
        raise DataError(f"{out} exists and is not prepared data. Choose another folder.")
    header = Header.load(out)
    if header.settings.get("inputs") != settings["inputs"]:
        raise DataError(f"{out} was prepared from other inputs. Choose another folder, or delete this one.")
    if different := [name for name, value in settings.items() if header.settings.get(name) != value]:
        was = ", ".join(f"{name} {header.settings.get(name)!r} (now {settings[name]!r})" for name in different)
        raise DataError(f"{out} was prepared with {was}. Choose another folder, or delete this one.")
    for split in SPLITS:
        TokenDataset.open(out, split)
    return header


def _train_tokenizer(
    corpus: Corpus, vocab_size: int, separator: str, validation_fraction: float, progress: Progress
) -> Tokenizer:
    task = progress.add_task("Read a sample", total=corpus.num_bytes or None, rate="")
    documents = corpus.documents(lambda num_bytes: progress.update(task, completed=num_bytes))
    training = (document for split, document in split_documents(documents, validation_fraction) if split == "train")
    texts = sample(training, _SAMPLE_CHARS)
    progress.update(task, description="Train a tokenizer")
    return train_tokenizer(texts, vocab_size, separator)


def _write(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    inputs: list[str],
    settings: dict[str, Any],
    progress: Progress,
) -> Header:
    separator = separator_id(tokenizer, settings["separator"])
    vocab_size = vocabulary_size(tokenizer)
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    task = progress.add_task("Tokenize", total=corpus.num_bytes or None, rate="")
    documents = corpus.documents(lambda num_bytes: progress.update(task, completed=num_bytes))
    num_tokens = 0
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(folder, split, dtype, settings["shard_tokens"])) for split in SPLITS
        }
        for batch in _batches(split_documents(documents, settings["validation_fraction"])):
            texts = [document.text for _, document in batch]
            for (split, document), tokens in zip(batch, encode(tokenizer, texts, separator, dtype), strict=True):
                writers[split].write(tokens, document.num_bytes)
                num_tokens += len(tokens)
            progress.update(task, rate=f"{num_tokens / (progress.tasks[task].elapsed or 1):,.0f} tokens/s")
    splits = {split: writer.split for split, writer in writers.items()}
    num_documents = sum(split.num_documents for split in splits.values())
    if num_documents == 0:
        raise DataError(f"the inputs hold no text ({corpus.num_empty} empty documents).")
    for name in SPLITS:
        if splits[name].num_documents == 0:
            raise DataError(
                f"of {num_documents} documents, none is for {name} (copies of one text stay together). Add documents, "
                "change validation_fraction or seed, or lower max_document_chars, which cuts long documents."
            )
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    header = Header(
        dtype=dtype.name,
        vocab_size=vocab_size,
        separator=settings["separator"],
        separator_id=separator,
        tokenizer_sha256=sha256_of(folder / TOKENIZER_FILE),
        num_empty_documents=corpus.num_empty,
        splits=splits,
        inputs=inputs,
        settings=settings,
    )
    header.save(folder)
    return header


def _batches(documents: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    batch: list[tuple[str, Document]] = []
    num_bytes = 0
    for each in documents:
        batch.append(each)
        num_bytes += each[1].num_bytes
        if num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _summary(out: Path, header: Header) -> Table:
    table = Table(title=f"{out}: vocabulary of {header.vocab_size:,}, {header.dtype}", title_justify="left")
    table.add_column("split")
    for column in ("documents", "tokens", "bytes of text", "bytes a token", "files"):
        table.add_column(column, justify="right")
    for name, split in header.splits.items():
        bytes_a_token = f"{split.num_bytes / split.num_tokens:.2f}"
        counts = (split.num_documents, split.num_tokens, split.num_bytes)
        table.add_row(name, *(f"{count:,}" for count in counts), bytes_a_token, str(len(split.shards)))
    if header.num_empty_documents:
        table.caption = f"Empty documents that were left out: {header.num_empty_documents:,}"
    return table
