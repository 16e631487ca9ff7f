"""docs/parallelism.md is what the model of communication says."""

import sys

import pytest

from benchmarks import communication
from ultramem.distributed.communication import Links, pools_at_owners, sent_by_fetched_rows, sent_by_pooled_rows
from ultramem.train.layout import unit_reads


def test_the_tables_are_those_of_the_model():
    page = communication.PAGE.read_text()
    filled = communication.fill(page, communication.tables(Links()))
    assert filled == page, "python -m benchmarks.communication rewrites the page"


def test_the_command_writes_the_page_for_its_links_and_prints_others(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{communication.BEGIN}stale\n{communication.END}\nafter\n")
    monkeypatch.setattr(communication, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["communication", "--network-bandwidth", "25"])
    communication.main()
    assert "stale" in page.read_text()
    assert "25 GB/s beyond it" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["communication"])
    communication.main()
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "stale" not in written


@pytest.mark.parametrize("num_gpus", communication.GPUS)
def test_the_page_says_who_wins(num_gpus):
    """What the text below the tables claims."""
    part = communication.tables(Links())
    published, larger, narrow = part.split("### ")[1:]
    (winner,) = [line for line in published.splitlines() if line.startswith(f"| {num_gpus} |") and "fastest" in line]
    assert ("columns |" if num_gpus == 8 else "columns in a node") in winner
    fastest = [line for line in larger.splitlines() if line.startswith(f"| {num_gpus} |") and "fastest" in line]
    assert len(fastest) == (num_gpus > 8)
    assert all("| columns |" in line for line in fastest)
    (winner,) = [line for line in narrow.splitlines() if line.startswith(f"| {num_gpus} |") and "fastest" in line]
    assert {8: "| columns |", 64: "| columns in a node", 512: "| rows |"}[num_gpus] in winner
    assert "replicate" not in "".join(line for line in part.splitlines() if "fastest" in line)


def test_the_page_says_where_rows_are_pooled():
    for config in communication.sizes().values():
        (read,) = unit_reads(config.model, config.micro_batch_size * config.sequence_length)
        assert sum(sent_by_pooled_rows(read, 8)[:2]) < sum(sent_by_fetched_rows(read, 8)[:2]) / 2
        assert not pools_at_owners(read, 512)
