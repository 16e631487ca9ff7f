import pytest

from ultramem.train.journal import Journal, read_journal


def test_lines_after_the_step_that_is_gone_on_from_are_dropped_and_a_torn_one_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, step=0)
    for step in (1, 2, 3):
        journal.write({"step": step, "loss": 1 / 3, "seconds": 10.0 * step})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_journal(path)] == [1, 2, 3]
    again = Journal(path, step=2)
    assert again.seconds == 20.0
    again.write({"step": 3, "loss": 0.5, "seconds": 31.0})
    assert [(line["step"], line["loss"]) for line in read_journal(path)] == [(1, 1 / 3), (2, 1 / 3), (3, 0.5)]


def test_no_file_is_no_lines(tmp_path):
    assert read_journal(tmp_path / "metrics.jsonl") == []
    assert Journal(tmp_path / "metrics.jsonl", step=0).seconds == 0


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"step": "two"}', b"\xff\xfe"])
def test_a_damaged_line_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged \(line 2 .*remove that line"):
        read_journal(path)
