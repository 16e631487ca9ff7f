"""Reads the documents of one file: plain text, JSON lines or Parquet, compressed or not, in bounded memory."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ultramem.data.errors import DataError

Kind = Literal["text", "json", "parquet"]

COMPRESSIONS = (".gz", ".xz", ".zst")
FORMATS: dict[str, tuple[Kind, str]] = {
    **{suffix + packed: ("text", packed) for suffix in (".txt", ".md") for packed in ("", *COMPRESSIONS)},
    **{suffix + packed: ("json", packed) for suffix in (".jsonl", ".ndjson") for packed in ("", *COMPRESSIONS)},
    # C4 and Dolma name their JSON lines so; a plain .json beside a corpus is mostly something else.
    **{".json" + packed: ("json", packed) for packed in COMPRESSIONS},
    ".parquet": ("parquet", ""),
}
"""What the end of a file's name says: what is inside, and how it is compressed ("" for not at all)."""

END_OF_DOCUMENT = "<|endoftext|>"
"""On a line of its own in a text file, it ends a document; it is also the default separator token."""

_BUFFER_BYTES = 1 << 20


def format_of(path: Path) -> tuple[Kind, str] | None:
    """Returns kind and compression ("" for none) by the file's name; None when it is no file of ours.

    Example:
        >>> format_of(Path("corpus/part-0.jsonl.zst"))
        ('json', '.zst')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return FORMATS.get("".join(suffixes[-2:])) or FORMATS.get("".join(suffixes[-1:]))


def read_documents(path: Path, *, text_field: str, max_chars: int) -> Iterator[tuple[str, int]]:
    """Yields each document of a file with the number of the file's bytes read so far.

    Args:
        path: a file whose name `format_of` knows.
        text_field: the field of a JSON object, or the column of a Parquet file, that holds the text.
        max_chars: a plain text file that is longer comes in several documents, each of whole lines.

    Raises:
        DataError: the file cannot be read, is damaged, is not UTF-8 text, or lacks the field; it names file and line.
    """
    found = format_of(path)
    assert found is not None, path
    kind, compression = found
    try:
        if kind == "parquet":
            yield from _parquet_documents(path, text_field)
            return
        with path.open("rb") as file, _decompressed(file, compression, path) as stream:
            buffered = io.BufferedReader(stream, _BUFFER_BYTES)
            if kind == "text":
                documents = _text_documents(buffered, max_chars)
            else:
                documents = _json_documents(buffered, path, text_field)
            for text in documents:
                yield text, file.tell()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Convert it to UTF-8.") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def text_of(record: Mapping[str, Any], text_field: str, place: str) -> str:
    """Returns the record's text ("" where it is null); `place` is how an error names the record."""
    if text_field not in record:
        raise _missing_field(text_field, record, place)
    text = record[text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"{place}: the field {text_field!r} is of type {type(text).__name__}, not text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: the field {text_field!r} is not valid Unicode ({error.reason}).") from error
    return text


def _missing_field(text_field: str, fields: Iterable[str], place: str) -> DataError:
    names = ", ".join(map(repr, fields)) or "none"
    return DataError(f"{place} has no field {text_field!r}. Choose text_field among the fields there are: {names}.")


def _decompressed(file: BinaryIO, compression: str, path: Path) -> AbstractContextManager[Any]:
    match compression:
        case ".gz":
            return gzip.GzipFile(fileobj=file)
        case ".xz":
            return lzma.LZMAFile(file)
        case ".zst":
            # Of the readers of zstd that there are, this one reports a truncated file and takes any window size.
            return _pyarrow(path).input_stream(file, compression="zstd")
    return nullcontext(file)


def _text_documents(stream: io.BufferedReader, max_chars: int) -> Iterator[str]:
    lines: list[str] = []
    chars = 0
    reader = io.TextIOWrapper(stream, encoding="utf-8-sig")
    while line := reader.readline():
        ends = line.strip() == END_OF_DOCUMENT
        if lines and (ends or chars + len(line) > max_chars):
            yield "".join(lines)
            lines, chars = [], 0
        if not ends:
            lines.append(line)
            chars += len(line)
    if lines:
        yield "".join(lines)


def _json_documents(stream: io.BufferedReader, path: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if line.isspace():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            raise DataError(f"{place} is not UTF-8 text ({error.reason}). Convert it to UTF-8.") from error
        except json.JSONDecodeError as error:
            raise DataError(f"{place} is not a JSON object on one line: {error.msg} (column {error.colno}).") from error
        if not isinstance(record, dict):
            raise DataError(f"{place} is not a JSON object on one line: it is of type {type(record).__name__}.")
        yield text_of(record, text_field, place)


def _parquet_documents(path: Path, text_field: str) -> Iterator[tuple[str, int]]:
    pyarrow = _pyarrow(path)
    import pyarrow.parquet as parquet

    num_bytes = path.stat().st_size
    try:
        with parquet.ParquetFile(path) as table:
            if text_field not in table.schema_arrow.names:
                raise _missing_field(text_field, table.schema_arrow.names, str(path))
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    text = text_of({text_field: value}, text_field, f"{path}, row {row}")
                    yield text, num_bytes * row // table.metadata.num_rows
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'ultramem-pytorch[data]'") from error
    return pyarrow
