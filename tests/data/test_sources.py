import json
import sys

import pytest

from ultramem.data.errors import DataError
from ultramem.data.sources import HubSource, find_sources, fingerprint


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    for name in ("b.txt", "a.md", "deep/er/c.jsonl", "picture.png", ".hidden.txt", ".git/d.txt", "tokenizer.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(sources):
    return [source.name for source in sources]


def test_a_folder_gives_its_readable_files_in_order(corpus):
    sources = find_sources([str(corpus)])
    assert names(sources) == ["a.md", "b.txt", "deep/er/c.jsonl"]
    assert [source.num_bytes for source in sources] == [4, 5, 15]


def test_globs_and_files_keep_the_order_of_the_inputs_and_no_file_comes_twice(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    sources = find_sources(["**/*.jsonl", "b.txt", "*", corpus / "a.md", "./b.txt"])
    assert names(sources) == ["c.jsonl", "b.txt", "a.md"]


@pytest.mark.parametrize("wrong", ["nowhere", "nowhere/*.txt", "owner/name"])
def test_what_matches_nothing_is_named_and_the_hub_is_pointed_to(corpus, wrong, monkeypatch):
    monkeypatch.chdir(corpus)
    with pytest.raises(DataError, match=f"'{wrong.replace('*', '.')}' matches no file.*'hf:owner/name'"):
        find_sources(["b.txt", wrong])


def test_files_of_unknown_kind_are_named_with_the_kinds_there_are(corpus):
    with pytest.raises(DataError, match=r"picture.png' holds no file that can be read. Known endings: .txt, "):
        find_sources([str(corpus / "picture.png")])
    with pytest.raises(DataError, match="there are no inputs"):
        find_sources([])


def test_the_fingerprint_knows_names_and_sizes_and_not_the_place(corpus, tmp_path):
    before = fingerprint(find_sources([str(corpus)]))
    moved = corpus.rename(tmp_path / "elsewhere")
    assert fingerprint(find_sources([str(moved)])) == before
    (moved / "b.txt").write_text("longer than it was")
    assert fingerprint(find_sources([str(moved)])) != before


def test_a_data_set_of_the_hub_is_streamed(tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({"body": f"{split} {number}"}) for number in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    for name, split in ((f"hf:{folder}", "train"), (f"hf:{folder}::test", "test")):
        (source,) = find_sources([name])
        assert source == HubSource(name)
        assert [text for text, _ in source.documents("body", 100)] == [f"{split} {number}" for number in range(3)]
    with pytest.raises(DataError, match="record 1 has no field 'text'"):
        list(source.documents("text", 100))
    with pytest.raises(DataError, match=r"cannot read 'hf:.*::dev'"):
        list(HubSource(f"hf:{folder}::dev").documents("body", 100))


def test_a_data_set_needs_the_library_and_a_name(monkeypatch):
    with pytest.raises(DataError, match="not of the form hf:owner/name"):
        list(HubSource("hf:a:b:c:d").documents("text", 100))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"'hf:a/b' needs the library datasets: pip install 'ultramem-pytorch\[data\]'"):
        list(HubSource("hf:a/b").documents("text", 100))
