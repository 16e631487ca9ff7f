"""All documents in one pass; a hash of each text decides whether it is for validation, or in the tokenizer's sample."""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ultramem.data.sources import Source

SPLITS = ("train", "validation")

_REPORT_BYTES = 1 << 20
_HELD_BYTES = 1 << 26


class Document(NamedTuple):
    """A text with its size in UTF-8 and the number in [0, 1) that its hash gives under the seed."""

    text: str
    num_bytes: int
    rank: float


class Corpus:
    """The documents of several sources; `num_empty` counts those without text, which a pass leaves out.

    Args:
        sources: what `find_sources` found.
        text_field: the field that holds the text, where there are fields.
        max_document_chars: longer documents are cut.
        seed: another seed gives the same text another rank.
    """

    def __init__(self, sources: Sequence[Source], *, text_field: str, max_document_chars: int, seed: int):
        self.num_bytes = sum(source.num_bytes for source in sources)
        self.num_empty = 0
        self._sources = sources
        self._text_field = text_field
        self._max_document_chars = max_document_chars
        self._seed = seed

    def documents(self, on_read: Callable[[int], None]) -> Iterator[Document]:
        """Yields all documents in order; `on_read` hears now and then how many bytes of the sources were read."""
        self.num_empty = 0
        before = reported = 0
        for source in self._sources:
            for text, num_bytes in source.documents(self._text_field, self._max_document_chars):
                if before + num_bytes - reported >= _REPORT_BYTES:
                    reported = before + num_bytes
                    on_read(reported)
                self.num_empty += not text
                for part in cut(text, self._max_document_chars):
                    yield ranked(part, self._seed)
            before += source.num_bytes
        on_read(before)


def cut(text: str, max_chars: int) -> Iterator[str]:
    """Yields the text in parts of at most `max_chars`: after a line's end if one is near, else a space, else anywhere.

    Example:
        >>> list(cut("To be, or not to be", 8))
        ['To be, ', 'or not ', 'to be']
    """
    start = 0
    while start < len(text):
        end = start + max_chars
        if end < len(text):
            near = start + max_chars // 2
            end = text.rfind("\n", near, end) + 1 or text.rfind(" ", near, end) + 1 or end
        yield text[start:end]
        start = end


def ranked(text: str, seed: int) -> Document:
    """Returns the document of a text; equal texts have equal ranks, wherever they stand."""
    utf8 = text.encode()
    digest = hashlib.blake2b(utf8, digest_size=8, key=str(seed).encode()).digest()
    return Document(text, len(utf8), (int.from_bytes(digest) >> 11) / 2**53)


def split_documents(documents: Iterable[Document], validation_fraction: float) -> Iterator[tuple[str, Document]]:
    """Yields ("train" or "validation", document) in order: validation is what ranks below the fraction.

    Nothing but the text and the seed decides, so a document stays where it is when others come or go, and copies of it
    never stand on both sides. In a small corpus nothing may rank so low; then the lowest is taken for validation, if
    that leaves others for training. To that end documents are held back, up to 64 MiB of them, until the first one for
    validation has been seen.
    """
    remaining = iter(documents)
    held: list[Document] = []
    held_bytes = 0
    highest = validation_fraction
    for document in remaining:
        held.append(document)
        held_bytes += document.num_bytes
        if document.rank < validation_fraction or held_bytes > _HELD_BYTES:
            break
    else:
        if len(ranks := {document.rank for document in held}) > 1:
            highest = sorted(ranks)[1]
    for run in (held, remaining):
        for document in run:
            yield ("validation" if document.rank < highest else "train"), document


def sample(documents: Iterable[Document], max_chars: int) -> list[str]:
    """Returns the texts of highest rank that fit into `max_chars` together, in the order of their ranks.

    They are a fair sample of the whole, and the same in whatever order the documents come. A text that is longer than
    the whole sample may be lends its beginning.
    """
    kept: list[tuple[float, str]] = []
    kept_chars = 0
    for document in documents:
        text = document.text[:max_chars]
        heapq.heappush(kept, (document.rank, text))
        kept_chars += len(text)
        while kept_chars > max_chars:
            kept_chars -= len(heapq.heappop(kept)[1])
    return [text for _, text in sorted(kept, reverse=True)]
