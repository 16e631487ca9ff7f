import io

from rich.console import Console

from ultramem.train import display
from ultramem.train.display import Display, show_summary

VALIDATION = {"step": 5, "validation_loss": 3.25, "memory": {"3:7": {"rows_read": 0.5, "singular_values": [1.0]}}}


def shown_by(monkeypatch, terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=200)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    with Display("tiny", step=4, steps=10) as shown:
        shown.advance(5, 3.5, 1234.5)
        shown.record(VALIDATION)
    return output.getvalue()


def test_a_terminal_gets_a_bar_with_loss_speed_and_counts(monkeypatch):
    text = shown_by(monkeypatch, terminal=True)
    for part in ("tiny", "5/10", "loss 3.5000", "1,234 tokens/s", "validation loss 3.2500"):
        assert part in text


def test_a_file_gets_a_line_for_each_record_and_no_bar(monkeypatch):
    assert shown_by(monkeypatch, terminal=False) == "step 5/10  validation_loss 3.25  memory/3:7/rows_read 0.5\n"


def test_the_summary_is_a_table_of_its_numbers(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(display, "Console", lambda **_: Console(file=output, width=100))
    show_summary({"name": "tiny", "status": "finished", "tokens": 12345, "best_validation_loss": 2.5, "seconds": None})
    for part in ("tiny: finished", "tokens", "12,345", "best validation loss", "2.5000"):
        assert part in output.getvalue()
    assert "goes on" not in output.getvalue()
    show_summary({"name": "tiny", "status": "stopped at step 3"})
    assert "The same command goes on from here." in output.getvalue()
