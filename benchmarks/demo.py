"""Keeps the demo's comparison and puts it into README, so that the table there cannot drift from what was measured.

make demo && python -m benchmarks.demo
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, show, write

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->"


def rows_of(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a recipe of a ``comparison.json``."""
    return [
        {
            "recipe": recipe["name"],
            "parameters": recipe["parameters"],
            "active_parameters": recipe["active_parameters"],
            "flops_per_token": recipe["flops_per_token"],
            "training_tokens": comparison["tokens"],
            "validation_loss": recipe["validation_loss"]["mean"],
            "bits_per_byte": recipe["bits_per_byte"]["mean"],
            "tokens_per_second": recipe["tokens_per_second"]["mean"],
        }
        for recipe in comparison["recipes"]
    ]


def table(rows: list[dict[str, str]]) -> str:
    """The kept rows as README shows them."""
    lines = [
        "| recipe | parameters | active | FLOPs a token | validation loss | bits per byte | tokens/s in training |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['recipe']}` | {int(row['parameters']) / 1e6:.2f}M | {int(row['active_parameters']) / 1e6:.2f}M "
            f"| {int(row['flops_per_token']) / 1e6:.2f}M | {float(row['validation_loss']):.3f} "
            f"| {float(row['bits_per_byte']):.3f} | {float(row['tokens_per_second']):,.0f} |"
        )
    of = rows[-1]
    speed = {row["recipe"]: float(row["tokens_per_second"]) for row in rows}
    lines += [
        "",
        f"UltraMem trains at {speed['cpu-ultramem'] / speed['cpu-dense']:.2f} of the dense model's tokens/s.",
        f"{int(of['training_tokens']):,} tokens of State of the Union addresses, one seed, {of['hardware']}, torch "
        f"{of['torch']}, commit {of['commit']}, {of['date']} (`make demo`; kept in `benchmarks/results/demo.csv`).",
    ]
    return "\n".join(lines) + "\n"


def fill(readme: str, results: str) -> str:
    """README with its results replaced."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + results + END + rest.split(END)[1]


def kept() -> list[dict[str, str]]:
    """What was kept last."""
    with (RESULTS / "demo.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Keeps the rows of a finished demo and rewrites README's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, nargs="?", default=ROOT / "runs/demo/comparison.json")
    rows = rows_of(json.loads(parser.parse_args().comparison.read_text()))
    write(rows, "demo")
    show(rows, title="demo")
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(), table(kept())))


if __name__ == "__main__":
    main()
