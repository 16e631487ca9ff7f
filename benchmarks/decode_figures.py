"""Plots of the kept decoding times, as in UltraMem's figures 1b and 6c; from the kept results and nothing else.

``python -m benchmarks.decode_figures`` writes ``docs/decode/``.
"""

import argparse
from pathlib import Path

from benchmarks.record import RESULTS
from benchmarks.study.page.picture import picture
from benchmarks.study.page.speed import Line, fastest_steps, kept_lines
from ultramem.plots import Point, Series

FIGURES = Path(__file__).parents[1] / "docs/decode"


def figures(kept: Path = RESULTS) -> dict[str, str]:
    """SVG by file name: a step's time against the batch, and against the rows of the table."""
    steps, grown = kept_lines(kept, "decode"), kept_lines(kept, "decode_table")
    return {
        "time_against_batch.svg": picture(
            [Series(name, _fastest(steps, name)) for name in ("moe", "ultramem", "dense")],
            x_label="sequences in the batch",
            y_label="milliseconds a step",
        ),
        "time_against_table.svg": picture(_against_table(grown, steps), x_label="rows", y_label="milliseconds a step"),
    }


def _against_table(grown: list[Line], steps: list[Line]) -> list[Series]:
    def line(column: str) -> list[Point]:
        return [(float(row["table_rows"]), float(row[column])) for row in grown]

    batch, trunk = float(grown[0]["batch"]), grown[0]["trunk"]
    dense = dict(_fastest([row for row in steps if row["trunk"] == trunk], "dense"))[batch]
    return [
        Series("ultramem", line("step_ms")),
        Series("dense", [(rows, dense) for rows, _ in line("step_ms")]),
        Series("floor of ultramem", line("floor_ms")),
    ]


def _fastest(steps: list[Line], model: str) -> list[Point]:
    return [(float(batch), float(line["step_ms"])) for batch, line in sorted(fastest_steps(steps, model).items())]


def write(folder: Path = FIGURES, kept: Path = RESULTS) -> None:
    """Writes the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in figures(kept).items():
        (folder / name).write_text(svg)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write()
