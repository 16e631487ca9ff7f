"""Do the claims hold? What the papers report of UltraMem beside others, and what the kept runs say, with links."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.study.ladder import PAPER
from benchmarks.study.page.dense_equivalent import dense_points, dense_size_for, descending
from benchmarks.study.page.kept_runs import Kept
from benchmarks.study.page.speed import fastest_steps
from benchmarks.study.page.tables import (
    Row,
    anchor,
    by_scale,
    by_settings,
    change,
    difference,
    markdown_table,
    mean_of,
    millions,
    short_name,
)

ULTRAMEM = "ultramem"


class Claim(NamedTuple):
    """One of two models at equal compute is ahead: what is claimed, the two, and the published differences."""

    said: str
    model: str
    other: str
    published: str


# UltraMem (arXiv 2411.12364) tables 1 and 2: training losses, the ladder's validation losses. UltraMemV2 (arXiv
# 2508.18756): evaluation losses of the open models, 227M active parameters of 1.2B.
CLAIMS = (
    Claim("UltraMem beside the dense model", ULTRAMEM, "dense", "-0.29, -0.27, -0.25 at 151M, 680M, 1.6B"),
    Claim("UltraMem beside experts", ULTRAMEM, "moe", "+0.04, -0.02, -0.06 at 151M, 680M, 1.6B"),
    Claim("UltraMem beside product keys", ULTRAMEM, "pkm", "-0.092 at 151M"),
    Claim("UltraMem beside Memory+", ULTRAMEM, "memory-plus", "-0.035 at 227M"),
    Claim("UltraMemV2 beside UltraMem", "ultramem-v2", ULTRAMEM, "-0.032 at 227M"),
)
WHAT_THE_TABLE_IS = (
    "Losses at equal compute and equal tokens, the first model's minus the other's: as published, and here at each "
    "scale, by the active parameters of its dense model; ± is the standard error over seeds, and in bold is what "
    "exceeds it twice. Where no ± stands one of the two has one seed."
)


def claims(folder: Path) -> str:
    """The table of losses, and a list of what else is claimed."""
    kept = Kept(folder)
    scales = [by_settings(of_scale) for of_scale in by_scale(kept.runs("equal_compute"))]
    scales = [groups for groups in scales if _find(groups, ULTRAMEM) and _find(groups, "dense")]
    table = markdown_table(
        ["", "published", *(_title(groups) for groups in scales)],
        [
            *([claim.said, claim.published, *(_compared(groups, claim) for groups in scales)] for claim in CLAIMS),
            ["UltraMem beside that with a 64th of the rows", "lower", *(_more_rows(kept, groups) for groups in scales)],
            ["UltraMem is as good as a dense model of", "4 times its size, at 1.6B",
             *(_dense_size(kept, groups) for groups in scales)],
        ],
    )  # fmt: skip
    said = [*_ladder(kept), *_decoding(kept)]
    return f"{WHAT_THE_TABLE_IS}\n\n{table}\n" + "".join(f"- {sentence}\n" for sentence in said)


def _find(groups: Sequence[list[Row]], name: str) -> list[Row]:
    """A model's runs, if there are any."""
    return next((runs for runs in groups if short_name(runs[0]) == name), [])


def _title(groups: Sequence[list[Row]]) -> str:
    return f"{groups[0][0]['scale']}, {millions(_find(groups, 'dense')[0]['active_parameters'])}"


def _compared(groups: Sequence[list[Row]], claim: Claim) -> str:
    """One difference, with a link to the first model's row."""
    runs, others = _find(groups, claim.model), _find(groups, claim.other)
    return _linked(runs, others, "equal_compute") if runs and others else ""


def _linked(runs: list[Row], others: list[Row], experiment: str) -> str:
    gives, error = change(runs, others, "validation_loss")
    link = f"[{difference(runs, others, 'validation_loss')}](#{anchor(experiment, runs[0])})"
    return f"**{link}**" if error is not None and abs(gives) > 2 * error else link


def _of_scale(kept: Kept, experiment: str, groups: Sequence[list[Row]]) -> list[Row]:
    return [row for row in kept.runs(experiment) if row["scale"] == groups[0][0]["scale"]]


def _more_rows(kept: Kept, groups: Sequence[list[Row]]) -> str:
    fewest = _find(by_settings(_of_scale(kept, "table_size", groups)), f"{ULTRAMEM}-rows-x1")
    return _linked(_find(groups, ULTRAMEM), fewest, "table_size") if fewest else ""


def _dense_size(kept: Kept, groups: Sequence[list[Row]]) -> str:
    """Times its active parameters, where larger dense models are better."""
    larger = _of_scale(kept, "dense_equivalent", groups)
    points = dense_points([*larger, *_find(groups, "dense")])
    if not larger or not descending(points):
        return ""
    ultramem = _find(groups, ULTRAMEM)
    size = dense_size_for(mean_of(ultramem, "validation_loss"), points)
    said = size if isinstance(size, str) else f"{size / ultramem[0]['active_parameters']:.2f} times its size"
    return f"[{said}](#{anchor('equal_compute', ultramem[0])})"


def _ladder(kept: Kept) -> Iterator[str]:
    rows = kept.runs("ladder")
    below, *_, above = PAPER
    first, last = ([row for row in rows if short_name(row) == name] for name in (below, above))
    if first and last:
        published = PAPER[above] - PAPER[below]
        yield (
            f"From product keys to UltraMem, step by step: {published:+.3f} at 151M as published, "
            f"{_linked(last, first, 'ladder')} here."
        )


def _decoding(kept: Kept) -> Iterator[str]:
    steps = fastest_steps(kept.lines("decode"), ULTRAMEM)
    if steps:
        best = max(steps.values(), key=lambda line: float(line["moe_is_slower"]))
        link = f"#decode-{best['batch']}"
        yield (
            "In decoding up to 6 times as fast as experts and nearly as fast as the dense model, as published at 1.6B; "
            f"here, at batch {best['batch']}, [{float(best['moe_is_slower']):.1f} times]({link}) and "
            f"[{float(best['of_dense']):.2f} of the dense model's time]({link})."
        )
