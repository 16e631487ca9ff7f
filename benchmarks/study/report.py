"""Writes the study's part of docs/results.md and its plots from the kept results, and from nothing else.

python -m benchmarks.study.report
"""

import argparse
from pathlib import Path

from benchmarks.study import sections
from benchmarks.study.results import KEPT, Results
from benchmarks.study.scales import SCALES
from benchmarks.study.tables import Row, provenance

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/results.md"
PLOTS = ROOT / "docs/study"
BEGIN, END = "<!-- study:begin -->\n", "<!-- study:end -->"

TITLES = {
    "equal_compute": "Equal compute",
    "dense_equivalent": "As good as a dense model of what size?",
    "table_size": "Rows of the table",
    "ladder": "The ladder from product keys to UltraMem",
    "learning_rates": "Learning rates",
    "knowledge": "Stored facts",
}
EXPLANATIONS = {
    "equal_compute": "Same trunk, same tokens in the same order; FLOPs are relative to the dense model's.",
    "dense_equivalent": "Larger dense models on the same tokens; the size between two of them is interpolated.",
    "table_size": "UltraMem with fewer rows, and as many parameters in its matrices.",
    "ladder": "One seed a rung. Where a spread stands, the same settings ran more than once, at different commits: "
    "so far two runs part on a GPU, and a step is to be read against that.",
    "learning_rates": "Runs half as long; the best of each model is what the other experiments take.",
    "knowledge": "Synthetic biographies, each person told of a hundred times; a person's facts hold 46.6 bits.",
}
NOTHING_KEPT = "Nothing is kept yet.\n"


def study(kept: Path = KEPT) -> tuple[str, dict[str, str]]:
    """The page's part and the plots by file name."""
    parts: list[str] = []
    plots: dict[str, str] = {}
    for experiment, title in TITLES.items():
        rows = Results(experiment, kept, kept).rows()
        scales = [scale for scale in (*SCALES, None) if any(row.get("scale") == scale for row in rows)]
        for scale in scales:
            of_scale = [row for row in rows if row.get("scale") == scale]
            section = _section(experiment, of_scale, kept)
            named = {f"{scale}_{name}" if scale else name: svg for name, svg in section.plots.items()}
            plots |= named
            parts.append(
                "\n".join(
                    [
                        f"### {title}" + (f", {scale}" if scale else "") + "\n",
                        f"{EXPLANATIONS[experiment]} `python -m benchmarks.study.{experiment}`; "
                        f"`benchmarks/results/study/{experiment}.jsonl`: {provenance(of_scale)}",
                        section.text,
                        *(f"![{title}]({PLOTS.name}/{name})\n" for name in named),
                    ]
                )
            )
    return "\n".join(parts) or NOTHING_KEPT, plots


def _section(experiment: str, rows: list[Row], kept: Path) -> sections.Section:
    if experiment == "dense_equivalent":
        rivals = [row for row in Results("equal_compute", kept).rows() if row["scale"] == rows[0]["scale"]]
        return sections.dense_equivalent(rows, rivals)
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
