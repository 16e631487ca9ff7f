"""Do the claims hold? What the papers report of UltraMem beside others, and what the kept runs say, with links."""

from pathlib import Path
from typing import NamedTuple

from benchmarks.study.ladder import PAPER, PAPER_ALONE
from benchmarks.study.page.dense_equivalent import as_good_as, dense_points, descending
from benchmarks.study.page.kept_runs import Kept
from benchmarks.study.page.speed import fastest_steps
from benchmarks.study.page.tables import (
    Row,
    anchor,
    best_by_name,
    by_scale,
    by_settings,
    change,
    compared,
    difference,
    markdown_table,
    millions,
    named,
    short_name,
)

ULTRAMEM, SIMPLE = "ultramem", "ultramem-simple"


class Claim(NamedTuple):
    """One of two models at equal compute is ahead: what is claimed, the two, and the published differences."""

    said: str
    model: str
    other: str
    published: str


# UltraMem (arXiv 2411.12364): losses on C4 of table 1, beside product keys of the ladder, table 2. UltraMemV2 (arXiv
# 2508.18756): evaluation losses of the open models, 227M active parameters of 1.2B.
CLAIMS = (
    Claim("UltraMem beside the dense model", ULTRAMEM, "dense", "-0.29, -0.27, -0.25 at 151M, 680M, 1.6B"),
    Claim("UltraMem beside experts", ULTRAMEM, "moe", "+0.04, -0.02, -0.06 at 151M, 680M, 1.6B"),
    Claim("UltraMem beside product keys", ULTRAMEM, "pkm", "-0.092 at 151M"),
    Claim("UltraMem beside Memory+", ULTRAMEM, "memory-plus", "-0.035 at 227M"),
    Claim("UltraMemV2 beside UltraMem", "ultramem-v2", ULTRAMEM, "-0.032 at 227M"),
    Claim(
        "UltraMem without skips and expansion beside UltraMem",
        SIMPLE,
        ULTRAMEM,
        f"{-PAPER_ALONE['07-ive']:+.3f} without expansion alone, at 151M",
    ),
    Claim("UltraMem without skips and expansion beside experts", SIMPLE, "moe", ""),
)
AS_GOOD = (
    ("UltraMem", ULTRAMEM, "4 times its size, at 1.6B"),
    ("UltraMem without skips and expansion", SIMPLE, ""),
)
WHAT_THE_TABLE_IS = (
    "A cell is the first model's loss minus the other's, at equal compute and equal tokens: as published, and as seen "
    "here. A column is a scale, with the active parameters of its dense model; the loss is of all tokens, or of new "
    "ones, which cannot be copied from their window. ± is the standard error over seeds, where both models have "
    "several; two or three give it only roughly. What exceeds it twice is in bold."
)


class Column(NamedTuple):
    """A scale's runs at equal compute by name, each model's best, and by which loss they are compared."""

    groups: dict[str, list[Row]]
    loss: str

    def __str__(self) -> str:
        return f"{self.scale}, {millions(self.size)}" + (", new tokens" if self.loss == "new_loss" else "")

    @property
    def size(self) -> float:
        """The dense model's active parameters."""
        return self.runs_of("dense")[0]["active_parameters"]

    @property
    def scale(self) -> str:
        """Its name."""
        return next(iter(self.groups.values()))[0]["scale"]

    def runs_of(self, name: str) -> list[Row]:
        """A model's runs, if there are any."""
        return next((runs for runs in self.groups.values() if short_name(runs[0]) == name), [])

    def beside(self, runs: list[Row], others: list[Row], experiment: str) -> str:
        """What one model's loss is above the other's, with a link to its row; nothing where one was not measured."""
        if not (runs and others and all(self.loss in run for run in [*runs, *others])):
            return ""
        gives, error = change(runs, others, self.loss)
        link = f"[{difference(runs, others, self.loss)}](#{anchor(experiment, runs[0])})"
        return f"**{link}**" if error is not None and abs(gives) > 2 * error else link


def claims(folder: Path) -> str:
    """The table of losses, and a list of what else is claimed."""
    kept = Kept(folder)
    columns = _columns(kept)
    table = markdown_table(
        ["", "published", *map(str, columns)],
        [
            *([claim.said, claim.published, *(_compared(column, claim) for column in columns)] for claim in CLAIMS),
            ["UltraMem beside one with a 64th of the rows", "lower",
             *(_more_rows(kept, column) for column in columns)],
            *(
                [f"{said} is as good as a dense model of", published,
                 *(_dense_size(kept, column, model) for column in columns)]
                for said, model, published in AS_GOOD
            ),
        ],
    )  # fmt: skip
    said = [_ladder(kept), _decoding(kept)]
    return f"{WHAT_THE_TABLE_IS}\n\n{table}\n" + "".join(f"- {sentence}\n" for sentence in said if sentence)


def _columns(kept: Kept) -> list[Column]:
    """The scales of UltraMem and a dense model, the smallest first, by each loss that both have."""
    columns = []
    for of_scale in by_scale(kept.runs("equal_compute")):
        ultramem, dense = (named(name, of_scale) for name in (ULTRAMEM, "dense"))
        if ultramem and dense:
            groups = best_by_name(by_settings(of_scale))
            columns += [Column(groups, loss) for loss in compared([*ultramem, *dense])]
    return sorted(columns, key=lambda column: column.size)


def _compared(column: Column, claim: Claim) -> str:
    return column.beside(column.runs_of(claim.model), column.runs_of(claim.other), "equal_compute")


def _more_rows(kept: Kept, column: Column) -> str:
    sizes = best_by_name(by_settings(named(f"{ULTRAMEM}-rows-x1", kept.of_scale("table_size", column.scale))))
    return "".join(column.beside(column.runs_of(ULTRAMEM), fewest, "table_size") for fewest in sizes.values())


def _dense_size(kept: Kept, column: Column, model: str) -> str:
    """Times a model's active parameters, where larger dense models are better."""
    runs, larger = column.runs_of(model), kept.of_scale("dense_equivalent", column.scale)
    if not (runs and larger and all(column.loss in row for row in larger)):
        return ""
    points = dense_points([*larger, *column.runs_of("dense")], column.loss)
    if not descending(points):
        return ""
    size, times = as_good_as(points, runs, column.loss)
    return f"[{f'{times} times its size' if times else size}](#{anchor('equal_compute', runs[0])})"


def _ladder(kept: Kept) -> str | None:
    """What all steps give together."""
    below, *_, above = PAPER
    first, last = (named(name, kept.runs("ladder")) for name in (below, above))
    if not (first and last):
        return None
    return (
        f"From product keys to UltraMem, step by step: {PAPER[above] - PAPER[below]:+.3f} at 151M as published, "
        f"[{difference(last, first, 'validation_loss')}](#{anchor('ladder', last[0])}) here."
    )


def _decoding(kept: Kept) -> str | None:
    """How fast UltraMem decodes where experts are slowest."""
    steps = fastest_steps(kept.lines("decode"), ULTRAMEM)
    if not steps:
        return None
    best = max(steps.values(), key=lambda line: float(line["moe_is_slower"]))
    link = f"#decode-{best['batch']}"
    return (
        "In decoding up to 6 times as fast as experts and nearly as fast as the dense model, as published at 1.6B; "
        f"here, at batch {best['batch']}, [{float(best['moe_is_slower']):.1f} times]({link}) and "
        f"[{float(best['of_dense']):.2f} of the dense model's time]({link})."
    )
