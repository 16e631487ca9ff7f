"""Writes the study's part of docs/results.md and its plots from the kept results, and from nothing else.

python -m benchmarks.study.report
"""

import argparse
from pathlib import Path

from benchmarks.study import sections
from benchmarks.study.caveats import caveats
from benchmarks.study.claims import claims
from benchmarks.study.kept_runs import kept_runs
from benchmarks.study.ladder_section import ladder
from benchmarks.study.results import KEPT
from benchmarks.study.speed import speed
from benchmarks.study.tables import Row, Section, by_scale, provenance

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/results.md"
PLOTS = ROOT / "docs/study"
BEGIN, END = "<!-- study:begin -->\n", "<!-- study:end -->"

TITLES = {
    "equal_compute": "Equal compute",
    "dense_equivalent": "As good as a dense model of what size?",
    "table_size": "Rows of the table",
    "shape": "UltraMem's shape",
    "ladder": "The ladder from product keys to UltraMem",
    "learning_rates": "Learning rates",
    "knowledge": "Stored facts",
}
EXPLANATIONS = {
    "equal_compute": "Same trunk, same tokens in the same order; FLOPs are relative to the dense model's. Times are "
    "of steps that had the machine to themselves; a loss in the dense model's time is that of a run on its way, whose "
    "learning rate has not come down. A repeated token, where these are told apart, ends a trigram that stands earlier "
    "in its window: it can be copied.",
    "dense_equivalent": "Larger dense models on the same tokens, beside those of equal compute; where larger "
    "ones are better, the size between two of them is interpolated.",
    "table_size": "UltraMem with fewer rows, and as many parameters in its matrices; all rows: that of equal compute.",
    "shape": "The recipe, and what differs from it in one way, at equal compute and with tables of the same size; runs "
    "half as long. Rows read and the outputs' standard deviation are of validation at the end, the mean over memories.",
    "ladder": "Each rung adds a step to the one before. ± is the standard deviation of a rung's runs, with other seeds "
    "or at other commits, and the standard error of a step; two or three runs give either only roughly.",
    "learning_rates": "Runs half as long; the best of each model, in bold, is what the other experiments take. A model "
    "that was not tried takes the rates of the nearest: dense for what has no memory, UltraMem for what has one.",
    "knowledge": "Synthetic biographies, each person told of a hundred times; a person's facts hold 46.6 bits. "
    "Rates are tried with the fewest people; links lead to a model's best.",
}
WHAT_CAVEATS_ARE = "What the kept numbers say against them, each with its row; it grows with what is measured."
NOT_MEASURED = "Not measured yet"


def study(kept: Path = KEPT) -> tuple[str, dict[str, str]]:
    """The page's part and the plots by file name."""
    parts = [f"### Claims and what was seen\n\n{claims(kept)}"]
    plots: dict[str, str] = {}
    for experiment, title in TITLES.items():
        command = f"`python -m benchmarks.study.{experiment}`"
        rows = kept_runs(experiment, kept)
        if not rows:
            parts.append(f"### {title}\n\n{EXPLANATIONS[experiment]} {NOT_MEASURED}: {command}.\n")
        for of_scale in by_scale(rows):
            scale = of_scale[0].get("scale")
            section = _section(experiment, of_scale, kept)
            named = {f"{scale}_{name}" if scale else name: svg for name, svg in section.plots.items()}
            plots |= named
            parts.append(
                "\n".join(
                    [
                        f"### {title}" + (f", {scale}" if scale else "") + "\n",
                        f"{EXPLANATIONS[experiment]} {command}; `benchmarks/results/study/{experiment}.jsonl`: "
                        f"{provenance(of_scale)}",
                        section.text,
                        *(f"![{title}]({PLOTS.name}/{name})\n" for name in named),
                    ]
                )
            )
    parts.append(f"### Speed\n\n{speed(kept.parent) or f'{NOT_MEASURED}: `make bench-gpu`.'}")
    parts.append(f"### When not to use memory layers\n\n{WHAT_CAVEATS_ARE}\n\n{caveats(kept)}")
    return "\n".join(parts), plots


def _section(experiment: str, rows: list[Row], kept: Path) -> Section:
    if experiment in ("dense_equivalent", "table_size"):
        rivals = [row for row in kept_runs("equal_compute", kept) if row["scale"] == rows[0]["scale"]]
        return getattr(sections, experiment)(rows, rivals)
    if experiment == "ladder":
        return ladder(rows)
    return getattr(sections, experiment)(rows)


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
