import json

import numpy as np
import pytest

from ultramem.data.errors import DataError
from ultramem.data.tokens import TokenDataset

TOKENS = np.arange(1, 251)


def edit_header(folder, **changes):
    path = folder / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("shard_tokens", [1, 7, 50, 1000])
def test_many_files_are_one_sequence(write_data, dtype, shard_tokens):
    dataset = TokenDataset.open(write_data(TOKENS, shard_tokens, dtype))
    assert len(dataset) == dataset.num_tokens == 250
    assert dataset.num_bytes == 1000
    assert dataset.vocab_size == 251
    for run in (slice(None), slice(0, 7), slice(6, 8), slice(7, 14), slice(3, 241), slice(-5, None), slice(240, 999)):
        assert dataset[run].dtype == dtype
        assert dataset[run].tolist() == TOKENS[run].tolist()
    assert dataset[9:9].tolist() == dataset[250:].tolist() == []
    dataset.verify()


def test_tokens_stay_on_the_disk(write_data):
    dataset = TokenDataset.open(write_data(TOKENS))
    run = dataset[10:20]
    assert not run.flags.owndata
    assert not run.flags.writeable


def test_the_splits_are_apart(write_data):
    folder = write_data(TOKENS)
    assert TokenDataset.open(folder, "validation").split == "validation"
    with pytest.raises(DataError, match="has no split 'test'; it has 'train', 'validation'"):
        TokenDataset.open(folder, "test")


def test_a_folder_without_header_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=f"{folder} is not prepared data: it has no header.json"):
            TokenDataset.open(folder)


def test_a_damaged_header_is_named(write_data):
    folder = write_data(TOKENS)
    whole = json.loads((folder / "header.json").read_text())
    for content, message in (
        ('{"format": "ul', r"cannot read .*header\.json"),
        ("[1]", "its format is not 'ultramem-tokens'"),
        (json.dumps(whole | {"format": "other"}), "its format is not 'ultramem-tokens'"),
        (json.dumps(whole | {"version": 2}), r"header\.json is of version 2; this library reads version 1"),
        (json.dumps(whole | {"dtype": "float16"}), r"header\.json is damaged: dtype 'float16'"),
        (json.dumps(whole | {"surprise": 1}), r"header\.json is damaged: .*surprise"),
        (json.dumps({name: value for name, value in whole.items() if name != "splits"}), "damaged: 'splits'"),
    ):
        (folder / "header.json").write_text(content)
        with pytest.raises(DataError, match=message):
            TokenDataset.open(folder)


def test_missing_and_short_files_are_named(write_data):
    folder = write_data(TOKENS, shard_tokens=100)
    shard = folder / "train-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train-00001\.bin has 198 bytes and should have 200"):
        TokenDataset.open(folder)
    shard.unlink()
    with pytest.raises(DataError, match=r"cannot read .*train-00001\.bin: No such file"):
        TokenDataset.open(folder)
    TokenDataset.open(folder, "validation")


def test_a_flipped_bit_is_found_and_its_file_named(write_data):
    folder = write_data(TOKENS, shard_tokens=100)
    content = bytearray((folder / "train-00002.bin").read_bytes())
    content[5] ^= 1
    (folder / "train-00002.bin").write_bytes(content)
    dataset = TokenDataset.open(folder)
    with pytest.raises(DataError, match=r"train-00002\.bin is damaged: its checksum is"):
        dataset.verify()


def test_another_tokenizer_is_refused(write_data):
    folder = write_data(TOKENS)
    (folder / "tokenizer.json").write_text('{"another": 1}')
    with pytest.raises(DataError, match=r"tokenizer\.json is not the tokenizer that made the tokens"):
        TokenDataset.open(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        TokenDataset.open(folder)
