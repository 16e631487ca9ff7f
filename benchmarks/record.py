"""Where measurements are kept: one CSV a benchmark, every row with hardware, versions and commit."""

import csv
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """What a number is worth nothing without: hardware, versions, commit, date."""
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    # Results that are just being written do not make the code another one.
    changed = _git("status", "--porcelain", "--", ":/", ":!/benchmarks/results")
    return {
        "hardware": hardware,
        "torch": torch.__version__,
        "triton": triton,
        "commit": (_git("describe", "--always") or "unknown") + ("-dirty" if changed else ""),
        "date": date.today().isoformat(),
    }


def _git(*arguments: str) -> str:
    """What git says, or nothing outside of a checkout."""
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()


def write(rows: Sequence[dict[str, Any]], name: str, folder: Path = RESULTS) -> Path:
    """One CSV a benchmark, replaced by every run; every row has the same fields."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    about = machine()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *about])
        writer.writeheader()
        writer.writerows(row | about for row in rows)
    return path


def _cell(value: Any) -> str:
    if value is None:  # not measured
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """The rows as a table, numbers to four digits."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if Console().is_terminal else 200).print(table)
