"""How fast the demo's recipes train on a CPU and how much memory they take, each in a process of its own.

python -m benchmarks.cpu_training
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import show, write

RECIPES = ("cpu-dense", "cpu-moe", "cpu-pkm", "cpu-ultramem")
TEXT = Path(__file__).parent.parent / "examples/text/state_of_the_union.jsonl.xz"


def ultramem(*arguments: object) -> None:
    """Runs the command line."""
    subprocess.run([sys.executable, "-m", "ultramem", *map(str, arguments)], check=True)


def measure(recipe: str, data: Path, run: Path, steps: int) -> dict[str, Any]:
    """Trains a recipe for so many steps, a validation and a checkpoint included."""
    ultramem("train", recipe, "--data", data, "--out", run, "--steps", steps)
    summary = json.loads((run / "summary.json").read_text())
    return {
        "recipe": recipe,
        "parameters": summary["parameters"],
        "steps": steps,
        "tokens_per_second": summary["tokens_per_second"],
        "peak_memory_gb": summary["peak_memory_bytes"] / 1e9,
    }


def main() -> None:
    """Measures, prints a table and keeps the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="training steps a recipe (2,048 tokens each)")
    steps = parser.parse_args().steps
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        ultramem("prepare", TEXT, "--out", data, "--vocab-size", 4096, "--validation-fraction", 0.05)
        rows = [measure(recipe, data, Path(folder) / recipe, steps) for recipe in RECIPES]
    dense = rows[0]["tokens_per_second"]
    rows = [row | {"of_dense": row["tokens_per_second"] / dense} for row in rows]
    show(rows, title="training on a CPU")
    print(f"kept in {write(rows, 'cpu_training')}")


if __name__ == "__main__":
    main()
