"""Where measurements are kept: one CSV a benchmark, every row with hardware, versions and commit."""

import csv
import platform
import subprocess
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, str]:
    """What a number is worth nothing without."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    ).stdout.strip()
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {"hardware": hardware, "torch": torch.__version__, "commit": commit or "unknown", "date": str(date.today())}


def keep(benchmark: str, rows: list[dict[str, object]]) -> Path:
    """Appends rows to ``results/<benchmark>.csv``; the columns are those of the first row plus `environment`."""
    path = RESULTS / f"{benchmark}.csv"
    path.parent.mkdir(exist_ok=True)
    rows = [row | environment() for row in rows]
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    return path
