"""header.json: what a folder of prepared data holds, written last and read first."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultramem.data.errors import DataError

HEADER_FILE = "header.json"
TOKENIZER_FILE = "tokenizer.json"
FORMAT = "ultramem-tokens"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens, one after the other, little-endian, without any framing."""

    file: str
    num_tokens: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of one split, in order, and their sums."""

    num_tokens: int
    """Separators included, one after each document."""
    num_documents: int
    num_bytes: int
    """Bytes of the documents' text in UTF-8: the divisor of bits per byte."""
    shards: list[Shard]


@dataclass(frozen=True, kw_only=True)
class Header:
    """Everything about prepared data but the tokens.

    Example:
        >>> header = Header.load(Path("data/x"))
        >>> header.splits["train"].num_tokens
        2208013
    """

    dtype: str
    """"uint16" or "uint32"."""
    vocab_size: int
    separator: str
    separator_id: int
    tokenizer_sha256: str
    num_empty_documents: int
    """Documents without any text, which were left out."""
    splits: dict[str, Split]
    inputs: list[str]
    """Where the text came from, in the words of whoever asked."""
    settings: dict[str, Any]
    """What `prepare` was asked for; the same settings over the same files give the same data."""

    def save(self, folder: Path) -> None:
        """Writes the header into the folder."""
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        (folder / HEADER_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Header":
        """Reads the header of a folder.

        Raises:
            DataError: there is none, it is damaged, or it is of another version.
        """
        path = folder / HEADER_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{folder} is not prepared data: it has no {HEADER_FILE}. Make it with prepare.") from None
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise DataError(f"{path} is not the header of prepared data: its format is not {FORMAT!r}.")
        if (version := content.pop("version", None)) != VERSION:
            raise DataError(f"{path} is of version {version}; this library reads version {VERSION}. Prepare again.")
        try:
            splits = {
                name: Split(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
                for name, split in content["splits"].items()
            }
            header = cls(**{**content, "splits": splits})
            if np.dtype(header.dtype) not in (np.uint16, np.uint32):
                raise ValueError(f"dtype {header.dtype!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}. Prepare again.") from error
        return header


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
