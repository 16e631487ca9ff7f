"""Writes a stream of tokens as files of bounded size."""

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ultramem.data.header import Shard, Split


class ShardWriter:
    """Writes `NAME-00000.bin`, `NAME-00001.bin`, … in a folder; a document may run on from one into the next.

    Args:
        folder: where the files go; it exists.
        name: the split's name.
        dtype: the type of a token; it is written in little-endian order.
        shard_tokens: no file holds more tokens.

    Example:
        >>> with ShardWriter(Path("data/x"), "train", np.dtype("uint16"), shard_tokens=2**27) as writer:
        ...     writer.write(np.array([5, 6, 0]), num_bytes=8)
        >>> writer.split.num_tokens
        3
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype, shard_tokens: int):
        self._folder = folder
        self._name = name
        self._dtype = dtype.newbyteorder("<")
        self._shard_tokens = shard_tokens
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._filled = 0
        self._crc32 = 0
        self._num_documents = 0
        self._num_bytes = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close_shard()

    def write(self, tokens: np.ndarray, num_bytes: int) -> None:
        """Appends one document, its separator included; `num_bytes` is the size of its text in UTF-8."""
        self._num_documents += 1
        self._num_bytes += num_bytes
        while len(tokens):
            if self._filled == self._shard_tokens:
                self._close_shard()
            if self._file is None:
                self._file = (self._folder / self._file_name()).open("wb")
            part, tokens = np.split(tokens, [self._shard_tokens - self._filled])
            content = part.astype(self._dtype, copy=False).tobytes()
            self._file.write(content)
            self._crc32 = zlib.crc32(content, self._crc32)
            self._filled += len(part)

    @property
    def split(self) -> Split:
        """What was written, once the writer is closed."""
        return Split(
            num_tokens=sum(shard.num_tokens for shard in self._shards),
            num_documents=self._num_documents,
            num_bytes=self._num_bytes,
            shards=self._shards,
        )

    def _file_name(self) -> str:
        return f"{self._name}-{len(self._shards):05d}.bin"

    def _close_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._shards.append(Shard(file=self._file_name(), num_tokens=self._filled, crc32=self._crc32))
        self._file, self._filled, self._crc32 = None, 0, 0
