import io
import json
import os
import resource

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from ultramem.data.corpus import Corpus
from ultramem.data.errors import DataError
from ultramem.data.header import Header
from ultramem.data.prepare import prepare
from ultramem.data.shards import ShardWriter
from ultramem.data.sources import find_sources
from ultramem.data.tokens import TokenDataset


def documents_of(folder, split):
    """Decodes a split back to its texts."""
    dataset = TokenDataset.open(folder, split)
    dataset.verify()
    tokenizer = Tokenizer.from_file(str(dataset.tokenizer_path))
    tokens = dataset[:]
    assert tokens.max() < dataset.vocab_size
    ends = np.flatnonzero(tokens == dataset.separator_id)
    assert ends[-1] == len(tokens) - 1
    assert len(ends) == dataset.num_documents
    parts = np.split(tokens, ends + 1)[:-1]
    texts = [tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts]
    assert dataset.num_bytes == sum(len(text.encode()) for text in texts)
    return texts


def test_tokens_decode_to_the_documents_of_all_kinds_of_files(tmp_path, texts, quiet):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("\n<|endoftext|>\n".join(texts[:10]), encoding="utf-8", newline="")
    (corpus / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[10:40]))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[40:]}), corpus / "c.parquet")
    header = prepare([corpus], tmp_path / "data", vocab_size=400, validation_fraction=0.2, console=quiet)
    train, validation = (documents_of(tmp_path / "data", split) for split in ("train", "validation"))
    assert sorted(text.rstrip("\n") for text in train + validation) == sorted(text.rstrip("\n") for text in texts)
    assert 2 < len(validation) < 25
    assert [text for text in texts[10:40] if text in train] == [text for text in train if text in texts[10:40]]
    assert header == Header.load(tmp_path / "data")
    assert header.inputs == [str(corpus)]
    assert (header.dtype, header.vocab_size, header.separator_id) == ("uint16", 400, 0)


def test_a_single_text_file_gives_both_splits(tmp_path, quiet):
    (tmp_path / "play.txt").write_text("".join(f"Line {number} of a play.\n" for number in range(500)))
    header = prepare(tmp_path / "play.txt", tmp_path / "data", vocab_size=300, max_document_chars=1000, console=quiet)
    assert header.splits["validation"].num_documents >= 1
    assert sum(split.num_bytes for split in header.splits.values()) == (tmp_path / "play.txt").stat().st_size


def test_the_same_settings_give_the_same_bytes(tmp_path, jsonl, quiet):
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "other"]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        prepare([jsonl], folder, vocab_size=300, validation_fraction=0.2, seed=seed, console=quiet)
    one, two, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert one["validation-00000.bin"] != other["validation-00000.bin"]


def test_files_are_bounded_and_documents_run_on(tmp_path, jsonl, texts, quiet):
    header = prepare([jsonl], tmp_path / "data", vocab_size=300, shard_tokens=100, console=quiet)
    shards = header.splits["train"].shards
    assert len(shards) > 5
    assert {shard.num_tokens for shard in shards[:-1]} == {100}
    found = [text for split in header.splits for text in documents_of(tmp_path / "data", split)]
    assert sorted(found) == sorted(texts)


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path, quiet):
    words = [f"w{number}" for number in range(70_000)]
    vocabulary = {"<|endoftext|>": 0} | {word: number + 1 for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "words.json"))
    (tmp_path / "a.txt").write_text("w69999 w0\n<|endoftext|>\nw5\n")
    header = prepare([tmp_path / "a.txt"], tmp_path / "data", tokenizer=tmp_path / "words.json", console=quiet)
    assert (header.dtype, header.vocab_size) == ("uint32", 70_001)
    splits = [TokenDataset.open(tmp_path / "data", split)[:] for split in header.splits]
    assert all(tokens.dtype == np.uint32 for tokens in splits)
    assert sorted(tokens.tolist() for tokens in splits) == [[6, 0], [70_000, 1, 0]]


def test_what_was_prepared_is_not_prepared_again(tmp_path, jsonl, quiet, monkeypatch):
    out = tmp_path / "data"
    header = prepare([jsonl], out, vocab_size=300, console=quiet)
    monkeypatch.setattr(ShardWriter, "write", None)
    printed = io.StringIO()
    assert prepare([jsonl], out, vocab_size=300, console=Console(file=printed, width=500)) == header
    assert f"{out} is already prepared." in printed.getvalue()


def test_prepared_data_is_never_overwritten(tmp_path, jsonl, quiet):
    out = tmp_path / "data"
    prepare([jsonl], out, vocab_size=300, console=quiet)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match=r"vocab_size 300 \(now 310\), seed 0 \(now 1\)\. Choose another folder"):
        prepare([jsonl], out, vocab_size=310, seed=1, console=quiet)
    (tmp_path / "more.txt").write_text("more")
    with pytest.raises(DataError, match="was prepared from other inputs"):
        prepare([jsonl, tmp_path / "more.txt"], out, vocab_size=300, console=quiet)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "train-00000.bin").unlink()
    with pytest.raises(DataError, match=r"cannot read .*train-00000\.bin"):
        prepare([jsonl], out, vocab_size=300, console=quiet)


def test_a_folder_of_something_else_is_left_alone_and_an_empty_one_is_used(tmp_path, jsonl, quiet):
    out = tmp_path / "data"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"exists and is not prepared data. Choose another folder."):
        prepare([jsonl], out, vocab_size=300, console=quiet)
    (out / "thesis.tex").unlink()
    prepare([jsonl], out, vocab_size=300, console=quiet)
    assert documents_of(out, "train")


@pytest.mark.parametrize("error", [RuntimeError("stopped"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(tmp_path, jsonl, quiet, monkeypatch, error):
    write, written = ShardWriter.write, []

    def fail_later(self, *arguments):
        if len(written) == 20:
            raise error
        written.append(write(self, *arguments))

    monkeypatch.setattr(ShardWriter, "write", fail_later)
    with pytest.raises(type(error)):
        prepare([jsonl], tmp_path / "data", vocab_size=300, console=quiet)
    assert os.listdir(tmp_path) == [jsonl.name]
    monkeypatch.undo()
    prepare([jsonl], tmp_path / "data", vocab_size=300, console=quiet)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, quiet):
    (tmp_path / "a.txt").write_text("".join(f"{number}\n" for number in range(50_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*data: File too large. Nothing was left there."):
            prepare([tmp_path / "a.txt"], tmp_path / "data", vocab_size=257, console=quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_a_killed_process_left_is_pointed_out(tmp_path, jsonl):
    left = tmp_path / ".data.partial-0123abcd"
    left.mkdir()
    printed = io.StringIO()
    prepare([jsonl], tmp_path / "data", vocab_size=300, console=Console(file=printed, width=500))
    assert str(left) in printed.getvalue()
    assert left.is_dir()


BAD_TEXTS = {
    '{"text": ""}\n{"text": null}\n': r"the inputs hold no text \(2 empty documents\)",
    "": r"the inputs hold no text \(0 empty documents\)",
    '{"text": "one"}\n{"text": "one"}\n': "of 2 documents, none is for validation",
    '{"text": "one"}\n{"text": broken}\n': r"corpus\.jsonl, line 2 is not a JSON object",
}


@pytest.mark.parametrize("content", BAD_TEXTS)
def test_a_corpus_without_enough_text_is_an_error_and_leaves_nothing(tmp_path, jsonl, quiet, content):
    jsonl.write_text(content)
    with pytest.raises(DataError, match=BAD_TEXTS[content]):
        prepare([jsonl], tmp_path / "data", vocab_size=300, console=quiet)
    assert os.listdir(tmp_path) == [jsonl.name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 256}, "vocab_size is 256; a byte-level BPE needs 257 at least"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0; it must lie between 0 and 1"),
        ({"validation_fraction": 5}, "validation_fraction is 5;"),
        ({"shard_tokens": 0}, "max_document_chars is 131072 and shard_tokens 0; both must be 1 or more"),
        ({"tokenizer": "nowhere.json"}, "there is no tokenizer file nowhere.json"),
    ],
)
def test_impossible_settings_are_named(tmp_path, jsonl, quiet, settings, message):
    with pytest.raises(DataError, match=message):
        prepare([jsonl], tmp_path / "data", **settings, console=quiet)
    assert os.listdir(tmp_path) == [jsonl.name]


def test_the_bundled_text_can_be_read():
    bundled = find_sources(["examples/text/state_of_the_union.jsonl.xz"])
    documents = Corpus(bundled, text_field="text", max_document_chars=1 << 20, seed=0).documents(lambda num_bytes: None)
    first = next(documents)
    assert first.text.startswith("Fellow-Citizens of the Senate and House of Representatives: ")
    assert sum(document.num_bytes for document in documents) + first.num_bytes == 10_756_823


def test_progress_and_counts_are_shown(tmp_path, jsonl):
    jsonl.write_text(jsonl.read_text() + '{"text": ""}\n')
    printed = io.StringIO()
    header = prepare([jsonl], tmp_path / "data", vocab_size=300, console=Console(file=printed, width=200))
    assert "tokens/s" in printed.getvalue()
    assert f"{header.splits['train'].num_tokens:,}" in printed.getvalue()
    assert "Empty documents that were left out: 1" in printed.getvalue()
