import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from ultramem.data.errors import DataError
from ultramem.data.tokenizer import encode, load_tokenizer, separator_id, train_tokenizer, vocabulary_size

SEPARATOR = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 320, SEPARATOR)


def ids_of(tokenizer, text):
    (ids,) = encode(tokenizer, [text], separator_id(tokenizer, SEPARATOR), np.dtype("uint16"))
    return ids


@given(text=st.text())
def test_a_trained_tokenizer_gives_back_any_text(tokenizer, text):
    ids = ids_of(tokenizer, text)
    assert ids[-1] == separator_id(tokenizer, SEPARATOR)
    assert tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False) == text


def test_training_twice_gives_the_same_tokenizer_of_the_size_asked_for(tokenizer, texts):
    assert train_tokenizer(texts, 320, SEPARATOR).to_str() == tokenizer.to_str()
    assert vocabulary_size(tokenizer) == 320
    assert vocabulary_size(train_tokenizer(["tiny"], 320, SEPARATOR)) < 320


def test_a_separator_inside_a_text_is_text(tokenizer):
    ids = ids_of(tokenizer, f"one{SEPARATOR}two")
    assert np.flatnonzero(ids == separator_id(tokenizer, SEPARATOR)).tolist() == [len(ids) - 1]


def test_a_tokenizer_is_read_from_a_file_or_its_folder_without_truncation_and_padding(tokenizer, tmp_path):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.enable_truncation(4)
    copy.enable_padding(length=64)
    copy.save(str(tmp_path / "tokenizer.json"))
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(name)
        assert loaded.to_str() == tokenizer.to_str()
        assert len(ids_of(loaded, "justice and peace" * 9)) == len(ids_of(tokenizer, "justice and peace" * 9)) > 5


def test_a_tokenizer_of_the_hub_is_asked_for_by_its_name(tokenizer, monkeypatch):
    monkeypatch.setattr(Tokenizer, "from_pretrained", {"owner/name": Tokenizer.from_str(tokenizer.to_str())}.get)
    assert load_tokenizer("hf:owner/name").to_str() == tokenizer.to_str()


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no tokenizer file .*tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"not": "a tokenizer"}))
    with pytest.raises(DataError, match="is not a tokenizer that the library tokenizers can read"):
        load_tokenizer(tmp_path)


def test_a_missing_separator_is_named_with_the_special_tokens_there_are(tokenizer):
    with pytest.raises(DataError, match=r"no token '</s>' .* its special tokens: '<\|endoftext\|>'"):
        separator_id(tokenizer, "</s>")
    with pytest.raises(DataError, match="it has none"):
        separator_id(Tokenizer(models.BPE()), "</s>")


def test_a_text_that_cannot_be_encoded_is_an_error():
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"the tokenizer cannot encode the text: .*UNK"):
        list(encode(tokenizer, ["b"], 0, np.dtype("uint16")))


def test_the_vocabulary_counts_gaps():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 99}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert vocabulary_size(tokenizer) == 100
