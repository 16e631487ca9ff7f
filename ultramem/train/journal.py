"""metrics.jsonl: what a run measured, one JSON object a line, in order of steps."""

import json
from pathlib import Path
from typing import Any

from ultramem.train.atomic import write_text


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Read a run's metrics; a last line torn by a kill is left out.

    Args:
        path: ``metrics.jsonl`` of a run folder; no file is no metrics.

    Returns:
        One dictionary a line, each with its "step".

    Raises:
        ValueError: a line is damaged.

    Example:
        >>> losses = [line["loss"] for line in read_journal(Path("runs/a/metrics.jsonl")) if "loss" in line]
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [_read_line(path, number, line) for number, line in enumerate(lines, start=1) if line.endswith(b"\n")]


def _read_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if not isinstance(record["step"], int):
            raise TypeError(f"step is {record['step']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged (line {number} is no record of a step): remove that line, and the same command goes on"
        ) from error
    return record


class Journal:
    """Appends to a run's metrics.

    Args:
        path: ``metrics.jsonl``.
        step: the step from which the run goes on; lines of later steps, which will be written again, are dropped.
    """

    def __init__(self, path: Path, *, step: int):
        lines = [line for line in read_journal(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._path = path
        self.seconds = max((line["seconds"] for line in lines if "seconds" in line), default=0.0)
        """Seconds that the run had taken by then."""

    def write(self, record: dict[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        with open(self._path, "a") as file:
            file.write(json.dumps(record) + "\n")
