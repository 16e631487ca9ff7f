"""Writes the study's part of docs/results.md and its plots from the kept results, and from nothing else.

python -m benchmarks.study.report
"""

import argparse
from pathlib import Path
from types import ModuleType

from benchmarks.study.page import (
    dense_equivalent,
    equal_compute,
    knowledge,
    ladder,
    learning_rates,
    shape,
    table_size,
)
from benchmarks.study.page.caveats import caveats
from benchmarks.study.page.claims import claims
from benchmarks.study.page.kept_runs import Kept
from benchmarks.study.page.speed import speed
from benchmarks.study.page.tables import Row, Section, by_scale, provenance
from benchmarks.study.results import KEPT

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/results.md"
PLOTS = ROOT / "docs/study"
BEGIN, END = "<!-- study:begin -->\n", "<!-- study:end -->"

# Each has a title, says what its experiment is, and makes a section of the experiment's rows.
PARTS: dict[str, ModuleType] = {
    "equal_compute": equal_compute,
    "dense_equivalent": dense_equivalent,
    "table_size": table_size,
    "shape": shape,
    "ladder": ladder,
    "learning_rates": learning_rates,
    "knowledge": knowledge,
}
BESIDE_RIVALS = (dense_equivalent, table_size)
WHAT_CAVEATS_ARE = "What the kept numbers say against them, each with its row; it grows with what is measured."
NOT_MEASURED = "Not measured yet"


def study(kept: Path = KEPT) -> tuple[str, dict[str, str]]:
    """The page's part and the plots by file name."""
    parts = [f"### Claims and what was seen\n\n{claims(kept)}"]
    plots: dict[str, str] = {}
    for experiment, part in PARTS.items():
        command = f"`python -m benchmarks.study.{experiment}`"
        rows = Kept(kept).runs(experiment)
        if not rows:
            parts.append(f"### {part.TITLE}\n\n{part.EXPLANATION} {NOT_MEASURED}: {command}.\n")
        for of_scale in by_scale(rows):
            scale = of_scale[0].get("scale")
            section = _section(part, of_scale, kept)
            named = {f"{scale}_{name}" if scale else name: svg for name, svg in section.plots.items()}
            plots |= named
            parts.append(
                "\n".join(
                    [
                        f"### {part.TITLE}" + (f", {scale}" if scale else "") + "\n",
                        f"{part.EXPLANATION} {command}; `benchmarks/results/study/{experiment}.jsonl`: "
                        f"{provenance(of_scale)}",
                        section.text,
                        *(f"![{part.TITLE}]({PLOTS.name}/{name})\n" for name in named),
                    ]
                )
            )
    parts.append(f"### Speed\n\n{speed(kept.parent) or f'{NOT_MEASURED}: `make bench-gpu`.'}")
    parts.append(f"### When not to use memory layers\n\n{WHAT_CAVEATS_ARE}\n\n{caveats(kept)}")
    return "\n".join(parts), plots


def _section(part: ModuleType, rows: list[Row], kept: Path) -> Section:
    if part in BESIDE_RIVALS:
        return part.section(rows, Kept(kept).of_scale("equal_compute", rows[0]["scale"]))
    return part.section(rows)


def fill(page: str, part: str) -> str:
    """The page with the study's part replaced."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + part + END + rest.split(END)[1]


def write(page: Path = PAGE, plots_folder: Path = PLOTS, kept: Path = KEPT) -> None:
    """Rewrite the page's part and the plots; plots that nothing shows any more go."""
    part, plots = study(kept)
    page.write_text(fill(page.read_text(), part))
    plots_folder.mkdir(exist_ok=True)
    for old in plots_folder.glob("*.svg"):
        old.unlink()
    for name, svg in plots.items():
        (plots_folder / name).write_text(svg)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write()
