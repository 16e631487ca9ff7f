import gzip
import json
import lzma
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ultramem.data.errors import DataError
from ultramem.data.formats import FORMATS, format_of, read_documents


def compress(content: bytes, compression: str) -> bytes:
    match compression:
        case ".gz":
            return gzip.compress(content)
        case ".xz":
            return lzma.compress(content)
        case ".zst":
            return pyarrow.compress(content, codec="zstd", asbytes=True)
    return content


def read(path: Path, text_field: str = "text", max_chars: int = 1 << 20) -> list[str]:
    return [text for text, _ in read_documents(path, text_field=text_field, max_chars=max_chars)]


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_its_documents_and_counts_its_bytes(tmp_path, ending, texts):
    kind, compression = FORMATS[ending]
    path = tmp_path / f"some.corpus.v1{ending.upper()}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), path, row_group_size=7)
    else:
        separated = "\n<|endoftext|>\n".join(texts) if kind == "text" else ""
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        path.write_bytes(compress((separated or lines).encode(), compression))
    found = list(read_documents(path, text_field="text", max_chars=1 << 20))
    if kind == "text":
        assert [text.rstrip("\n") for text, _ in found] == [text.rstrip("\n") for text in texts]
    else:
        assert [text for text, _ in found] == texts
    assert found[-1][1] == path.stat().st_size


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.gz", "a.parquet.gz", "header.json", "a.txt.bz2", ".txt.swp"])
def test_other_files_have_no_format(name):
    assert format_of(Path(name)) is None


def test_text_is_cut_between_lines(tmp_path):
    path = tmp_path / "a.txt"
    lines = [f"line {number}\n" for number in range(100)] + ["a line that is longer than the limit by itself\n", "end"]
    path.write_text("".join(lines))
    documents = read(path, max_chars=30)
    assert "".join(documents) == "".join(lines)
    assert all(len(document) <= 30 or document.count("\n") == 1 for document in documents)
    assert len(documents) < 40


def test_byte_order_mark_and_carriage_returns_vanish(tmp_path):
    path = tmp_path / "a.md"
    path.write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert read(path) == ["one\ntwo\n"]


def test_blank_lines_between_json_objects_and_null_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n   \n{"text": null}\n{"text": "two"}')
    assert read(path) == ["one", "", "two"]


def test_a_large_window_of_zstd_is_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(
        zstandard.ZstdCompressor(compression_params=parameters).compress(
            b"text",
        )
        * 2
    )
    assert read(path) == ["texttext"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_file_is_read_as_its_documents_are_asked_for(tmp_path, ending):
    texts = [f"{number} {number * 7919 % 1000003}" * 100 for number in range(8000)]
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="none", row_group_size=500)
    else:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        path.write_bytes(compress(content, ending.removeprefix(".jsonl")))
    documents = read_documents(path, text_field="text", max_chars=1 << 20)
    _, num_bytes = next(documents)
    assert num_bytes < path.stat().st_size / 2


BAD_JSON = {
    '{"text": "one"}\n{"text": "two"\n': "line 2 is not a JSON object on one line",
    '["one"]\n': "line 1 is not a JSON object on one line: it is of type list",
    '{"body": "one", "id": 3}\n': r"line 1 has no field 'text'. Choose text_field .*: 'body', 'id'",
    "{}\n": "fields there are: none",
    '{"text": 5}\n': "line 1: the field 'text' is of type int, not text",
    '{"text": "\\ud800"}\n': "line 1: the field 'text' is not valid Unicode",
}


@pytest.mark.parametrize("content", BAD_JSON)
def test_bad_json_lines_are_named(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=BAD_JSON[content]) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("name", "place"), [("a.txt", "a.txt"), ("a.jsonl", "a.jsonl, line 2")])
def test_text_of_another_encoding_is_named(tmp_path, name, place):
    path = tmp_path / name
    path.write_bytes('{"text": "plain"}\n{"text": "naïve"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=f"{place} is not UTF-8 text"):
        read(path)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_damaged_compression_is_named(tmp_path, compression):
    path = tmp_path / f"a.txt{compression}"
    whole = compress(b"".join(b"%d\n" % (number * 7919) for number in range(100_000)), compression)
    for content in (whole[: len(whole) // 2], b"plain text, not compressed at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"cannot read .*a.txt{compression}: "):
            read(path)


def test_damaged_parquet_and_missing_columns_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one"], "id": [1]}), path)
    with pytest.raises(DataError, match=r"a.parquet has no field 'text'.*: 'body', 'id'"):
        read(path)
    with pytest.raises(DataError, match=r"a.parquet, row 1: the field 'id' is of type int"):
        read(path, text_field="id")
    assert read(path, text_field="body") == ["one"]
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"cannot read .*a.parquet"):
        read(path)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'ultramem-pytorch\[data\]'"):
        read(path)
