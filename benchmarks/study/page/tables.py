"""Pieces of a Markdown page: sections, tables, and numbers with their spread."""

import json
from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import fmean, stdev, variance
from typing import Any, NamedTuple

from benchmarks.study.scales import SCALES
from ultramem.train.config_json import with_defaults

Row = dict[str, Any]

LOSSES = {
    "validation_loss": "validation loss",
    "bits_per_byte": "bits per byte",
    "new_loss": "loss of new tokens",
    "repeated_loss": "of repeated tokens",
}


class Section(NamedTuple):
    """A part of the page, and the plots that it shows."""

    text: str
    plots: dict[str, str]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; the first column is text."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def with_spread(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and the standard deviation where there are several values."""
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def millions(count: float) -> str:
    """A count of parameters or FLOPs in millions."""
    return f"{count / 1e6:.3g}M" if count < 1e8 else f"{count / 1e6:.0f}M"


def change(runs: Sequence[Row], others: Sequence[Row], field: str) -> tuple[float, float | None]:
    """What a number is above that of other runs, and its standard error where there are several of both."""
    gives = mean_of(runs, field) - mean_of(others, field)
    if min(len(runs), len(others)) < 2:
        return gives, None
    return gives, sqrt(sum(variance([row[field] for row in rows]) / len(rows) for rows in (runs, others)))


def with_error(gives: float, error: float | None) -> str:
    """A change as the page shows it."""
    return f"{gives:+.3f}" if error is None else f"{gives:+.3f} ± {error:.3f}"


def difference(runs: Sequence[Row], others: Sequence[Row], field: str) -> str:
    """What a number is above that of other runs, as the page shows it."""
    return with_error(*change(runs, others, field))


def anchor(experiment: str, row: Row) -> str:
    """What a link to a run's line in its experiment's table says, such as "equal-compute-gpu-15m-dense"."""
    name = f"{row['scale']}-{short_name(row)}" if "scale" in row else row["name"]
    return f"{experiment}-{name}".replace("_", "-")


def anchored(experiment: str, row: Row, shown: str) -> str:
    """The first cell of that line."""
    return f'<a id="{anchor(experiment, row)}"></a>{shown}'


def alone(runs: Sequence[Row]) -> list[Row]:
    """Those runs that had the machine to themselves: their times are their own."""
    return [row for row in runs if row.get("side_by_side", 1) == 1]


def step_seconds(runs: Sequence[Row]) -> float | None:
    """A step's time, the mean over the runs that were alone; none where no run was."""
    return mean_of(alone(runs), "seconds_per_step") if alone(runs) else None


def step_time(runs: Sequence[Row]) -> str:
    """That time in milliseconds, and whether it is of models that were not compiled."""
    seconds = step_seconds(runs)
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.1f}" + ("" if all(row["settings"]["compile"] for row in alone(runs)) else " (eager)")


def by_settings(rows: Iterable[Row]) -> list[list[Row]]:
    """Runs that differ in nothing but the seed together, in the order of their first run."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(json.dumps(_settings(row), sort_keys=True), []).append(row)
    return [*grouped.values()]


def _settings(row: Row) -> Row:
    settings = with_defaults(row["settings"])
    return {name: value for name, value in settings.items() if name not in ("seed", "compile")} | {"name": row["name"]}


def by_scale(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs of one scale together, scales in the order of their first run."""
    scales = dict.fromkeys(row.get("scale") for row in rows)
    return [[row for row in rows if row.get("scale") == scale] for scale in scales]


def by_name(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Runs of one name together, names in the order of their first run."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["name"], []).append(row)
    return grouped


def mean_of(rows: Sequence[Row], field: str) -> float:
    """The mean of a number over runs."""
    return fmean(row[field] for row in rows)


def short_name(row: Row) -> str:
    """A run's name without its family."""
    return row["name"].removeprefix("ladder-").removeprefix(f"{SCALES[row['scale']].family}-")


def measured(rows: Sequence[Row]) -> list[str]:
    """Which losses some run has: older ones lack those of new and of repeated tokens."""
    return [loss for loss in LOSSES if any(loss in row for row in rows)]


def compared(rows: Sequence[Row]) -> list[str]:
    """The losses by which models may be set beside each other: every run has them; the last tells most."""
    return [loss for loss in ("validation_loss", "new_loss") if all(loss in row for row in rows)]


def losses(runs: Sequence[Row], which: Iterable[str]) -> list[str]:
    """A model's losses with their spread; of one that a run lacks nothing is shown."""
    return [
        with_spread([run[loss] for run in runs], 4 if loss == "bits_per_byte" else 3)
        if all(loss in run for run in runs)
        else ""
        for loss in which
    ]


def named(name: str, rows: Sequence[Row]) -> list[Row]:
    """The runs of one model."""
    return [row for row in rows if short_name(row) == name]


def mean_health(runs: Sequence[Row], field: str) -> float:
    """The mean over runs and their memories."""
    return fmean(health[field] for run in runs for health in run["memory"].values())


def learning_rate(row: Row) -> float:
    """The trunk's."""
    return row["settings"]["optimizer"]["learning_rate"]


def rates(row: Row) -> str:
    """The trunk's learning rate and, where there is a memory, how many times faster its tables learn at first."""
    tables = row["settings"]["optimizer"]["table_multiplier_start"]
    return f"{learning_rate(row):g}" + (f", tables x{tables:g}" if row["settings"]["model"]["memory"] else "")


def best_by_name(groups: Iterable[list[Row]], loss: str = "validation_loss") -> dict[str, list[Row]]:
    """By name, in the order of `groups`, the runs of the best settings: of those with most seeds the lowest mean loss.

    A single run of other settings may be lucky: it does not stand for a model that has several.
    """
    best: dict[str, list[Row]] = {}
    for runs in groups:
        name = runs[0]["name"]
        best[name] = min(best.get(name, runs), runs, key=lambda several: (-len(several), mean_of(several, loss)))
    return best


def provenance(rows: Sequence[Row]) -> str:
    """What the numbers were measured on: tokens, machine, versions, commits, dates, each once."""

    def all_of(field: str) -> str:
        return ", ".join(sorted({str(row[field]) for row in rows}))

    tokens = sorted({row["tokens"] for row in rows})
    shown = " to ".join(f"{count / 1e6:.1f}M" for count in dict.fromkeys((tokens[0], tokens[-1])))
    epochs = tokens[-1] / rows[0]["data"]["training_tokens"]
    return (
        f"{len(rows)} runs of {shown} tokens ({epochs:.2f} epochs at most, vocabulary "
        f"{rows[0]['data']['vocabulary']:,}), {all_of('hardware')}, torch {all_of('torch')}, commit "
        f"{all_of('commit')}, {all_of('date')}.\n"
    )
