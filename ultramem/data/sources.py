"""Finds what the user named: files, folders, globs, or data sets of the Hugging Face hub."""

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramem.data.errors import DataError
from ultramem.data.formats import FORMATS, format_of, read_documents, text_of

HUB_PREFIX = "hf:"


@dataclass(frozen=True)
class FileSource:
    """One file; `name` is its path inside the folder that was asked for, so that it does not depend on the machine."""

    path: Path
    name: str
    num_bytes: int

    def documents(self, text_field: str, max_chars: int) -> Iterator[tuple[str, int]]:
        """Yields each document with the number of bytes of the source read so far."""
        return read_documents(self.path, text_field=text_field, max_chars=max_chars)


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub, streamed: `hf:owner/name[:configuration[:split]]`."""

    name: str
    num_bytes: int = 0  # not known before the stream ends

    def documents(self, text_field: str, max_chars: int) -> Iterator[tuple[str, int]]:
        """Yields each document with the number of bytes of the source read so far."""
        try:
            for number, record in enumerate(self._open(), start=1):
                yield text_of(record, text_field, f"{self.name}, record {number}"), 0
        except DataError:
            raise
        except Exception as error:  # the library, its readers and its transports raise a dozen unrelated types
            raise DataError(f"cannot read {self.name!r}: {error}") from error

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"{self.name!r} needs the library datasets: pip install 'ultramem-pytorch[data]'"
            ) from error
        dataset, configuration, split, *more = [*self.name.removeprefix(HUB_PREFIX).split(":"), "", ""]
        if not dataset or any(more):
            raise DataError(f"{self.name!r} is not of the form hf:owner/name[:configuration[:split]].")
        return datasets.load_dataset(dataset, configuration or None, split=split or "train", streaming=True)


Source = FileSource | HubSource


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """Returns the sources in the order of the inputs, each folder and glob in the order of its names, no file twice.

    Raises:
        DataError: an input matches nothing that can be read.

    Example:
        >>> find_sources(["corpus/", "more/*.jsonl.gz", "hf:roneneldan/TinyStories"])
    """
    if not inputs:
        raise DataError("there are no inputs. Name files, folders, globs, or data sets as hf:owner/name.")
    found: dict[str | Path, Source] = {}
    for each in map(str, inputs):
        if each.startswith(HUB_PREFIX):
            found.setdefault(each, HubSource(each))
            continue
        for source in _files(each):
            found.setdefault(source.path.resolve(), source)
    return list(found.values())


def fingerprint(sources: Sequence[Source]) -> str:
    """Returns a digest of the names and sizes of all sources: cheap, and the same on every machine."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.name}\0{source.num_bytes}\n".encode())
    return digest.hexdigest()


def _files(name: str) -> list[FileSource]:
    path = Path(name)
    if path.is_file():
        matches = [(path, path.name)]
    elif path.is_dir():
        matches = [(file, file.relative_to(path).as_posix()) for file in path.rglob("*")]
        matches = [(file, inside) for file, inside in matches if "/." not in f"/{inside}"]
    else:
        matches = [(Path(match), Path(match).name) for match in glob.glob(name, recursive=True)]
    files = [FileSource(file, inside, file.stat().st_size) for file, inside in sorted(matches) if file.is_file()]
    readable = [file for file in files if format_of(file.path)]
    if not files:
        raise DataError(f"{name!r} matches no file. For a data set of the Hugging Face hub, write 'hf:owner/name'.")
    if not readable:
        raise DataError(f"{name!r} holds no file that can be read. Known endings: {', '.join(FORMATS)}.")
    return readable
