"""The tokenizer of a corpus: read from a file, or a byte-level BPE trained on the spot."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ultramem.data.errors import DataError
from ultramem.data.sources import HUB_PREFIX


def load_tokenizer(name: str | Path) -> Tokenizer:
    """Reads a tokenizer from a `tokenizers` JSON file, from a folder with a tokenizer.json, or from the hub as hf:NAME.

    Raises:
        DataError: there is no such file, or it is no tokenizer.
    """
    on_hub = str(name).startswith(HUB_PREFIX)
    if not on_hub:
        path = Path(name)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise DataError(
                f"there is no tokenizer file {path}. Name a JSON file of the library tokenizers, a folder with a "
                "tokenizer.json (AutoTokenizer.save_pretrained writes one), or hf:NAME."
            )
    try:
        if on_hub:
            tokenizer = Tokenizer.from_pretrained(str(name).removeprefix(HUB_PREFIX))
        else:
            tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{name} is not a tokenizer that the library tokenizers can read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, separator: str) -> Tokenizer:
    """Trains a byte-level BPE (Radford et al. 2019, GPT-2): any text can be encoded, and decodes to itself.

    The same texts give the same tokenizer. A small sample may hold fewer pairs than asked for; then the vocabulary is
    smaller.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[separator],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Returns the number of rows that an embedding needs: the highest id plus one, since ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def separator_id(tokenizer: Tokenizer, separator: str) -> int:
    """Returns the id of the token between documents.

    Raises:
        DataError: the vocabulary has no such token; the message lists the special tokens that it has.
    """
    found = tokenizer.token_to_id(separator)
    if found is None:
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        raise DataError(
            f"the tokenizer has no token {separator!r} to separate documents. Choose separator among its special "
            f"tokens: {', '.join(map(repr, special[:20])) or 'it has none'}."
        )
    return found


def encode(tokenizer: Tokenizer, texts: list[str], separator: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yields the tokens of each text, the separator's id at the end. Special tokens inside a text are mere text.

    Raises:
        DataError: the tokenizer cannot encode a text, for instance because it has no token for an unknown word.
    """
    tokenizer.encode_special_tokens = True
    try:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"the tokenizer cannot encode the text: {error}") from error
    for encoding in encodings:
        ids = encoding.ids
        ids.append(separator)
        yield np.array(ids, dtype=dtype)
