"""Writes a benchmark's rows to benchmarks/results, beside what is needed to read them: GPU, versions, commit."""

import csv
import subprocess
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """GPU (or CPU), versions and commit of this run."""
    import triton

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return dict(
        date=date.today().isoformat(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        torch=torch.__version__,
        triton=triton.__version__,
        commit=commit.stdout.strip() or "unknown",
    )


def write(rows: list[dict], name: str, folder: Path = RESULTS) -> Path:
    """One CSV a benchmark, replaced by every run; every row has the same fields."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    about = machine()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *about])
        writer.writeheader()
        writer.writerows(row | about for row in rows)
    return path


def show(rows: list[dict]) -> None:
    """The rows as a table of plain text."""
    columns = list(rows[0])
    texts = [columns, *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(columns))]
    for line in texts:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
