"""Opens prepared data: many files of tokens, seen as one long sequence that stays on the disk."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ultramem.data.errors import DataError
from ultramem.data.header import TOKENIZER_FILE, Header, sha256_of


class TokenDataset:
    """One split of a folder that `prepare` made. Make it with `TokenDataset.open`.

    Attributes:
        folder: where the data lies.
        split: "train" or "validation".
        header: all that is known about the data.
        num_tokens: length of the sequence; a separator follows each document.
        num_documents: how many documents it is made of.
        num_bytes: bytes of their text in UTF-8; bits per byte = nats a token * num_tokens / num_bytes / ln 2.
        vocab_size: every token is less.
        separator_id: the token that ends a document.
        tokenizer_path: the tokenizer's file.
    """

    def __init__(self, folder: Path, split: str, header: Header):
        self.folder = folder
        self.split = split
        self.header = header
        self.num_tokens = header.splits[split].num_tokens
        self.num_documents = header.splits[split].num_documents
        self.num_bytes = header.splits[split].num_bytes
        self.vocab_size = header.vocab_size
        self.separator_id = header.separator_id
        self.tokenizer_path = folder / TOKENIZER_FILE
        dtype = np.dtype(header.dtype).newbyteorder("<")
        self._shards = [_map(folder / each.file, each.num_tokens, dtype) for each in header.splits[split].shards]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> "TokenDataset":
        """Opens one split; reads the header and the tokenizer, and looks at the sizes of the files of tokens.

        Raises:
            DataError: the folder is no prepared data, a file is missing or not as long as it should be, or the
                tokenizer is not the one that made the tokens.

        Example:
            >>> dataset = TokenDataset.open("data/x", "validation")
            >>> dataset[:4]
            array([ 337,  271, 1024,   12], dtype=uint16)
        """
        folder = Path(folder)
        header = Header.load(folder)
        if split not in header.splits:
            raise DataError(f"{folder} has no split {split!r}; it has {', '.join(map(repr, header.splits))}.")
        tokenizer = folder / TOKENIZER_FILE
        if not tokenizer.is_file():
            raise DataError(f"{tokenizer} is missing. Copy it there again, or prepare again.")
        if sha256_of(tokenizer) != header.tokenizer_sha256:
            raise DataError(f"{tokenizer} is not the tokenizer that made the tokens beside it. Prepare again.")
        return cls(folder, split, header)

    def __len__(self) -> int:
        return self.num_tokens

    def __getitem__(self, positions: slice) -> np.ndarray:
        """Returns a run of tokens, as uint16 or uint32; from the disk itself where it lies within one file."""
        start, stop, step = positions.indices(self.num_tokens)
        assert step == 1, positions
        if start >= stop:
            return np.empty(0, dtype=self.header.dtype)
        first, last = np.searchsorted(self._starts, (start, stop - 1), side="right") - 1
        parts = [
            shard[max(start - begin, 0) : stop - begin]
            for shard, begin in zip(self._shards[first : last + 1], self._starts[first : last + 1], strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def verify(self) -> None:
        """Reads all tokens and compares them with their checksums; 0.2 s a GB, if the disk is as fast.

        Raises:
            DataError: a file was damaged after it was written; it is named.
        """
        shards = self.header.splits[self.split].shards
        with ThreadPoolExecutor() as threads:
            for shard, crc32 in zip(shards, threads.map(zlib.crc32, self._shards), strict=True):
                if crc32 != shard.crc32:
                    raise DataError(
                        f"{self.folder / shard.file} is damaged: its checksum is {crc32:08x}, not {shard.crc32:08x} "
                        "as when it was written. Copy it there again, or prepare again."
                    )


def _map(path: Path, num_tokens: int, dtype: np.dtype) -> np.ndarray:
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Copy it there again, or prepare again.") from error
    if num_bytes != num_tokens * dtype.itemsize:
        raise DataError(
            f"{path} has {num_bytes} bytes and should have {num_tokens * dtype.itemsize}. "
            "Copy it there again, or prepare again."
        )
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
