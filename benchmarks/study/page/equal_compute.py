"""Equal compute: every rival with its loss, its speed, and its curves against tokens and time."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from benchmarks.study.page.answers import answers
from benchmarks.study.page.copying import copying
from benchmarks.study.page.health import health
from benchmarks.study.page.kept_runs import occasion
from benchmarks.study.page.picture import picture
from benchmarks.study.page.tables import (
    LOSSES,
    Row,
    Section,
    anchored,
    best_by_name,
    by_settings,
    losses,
    markdown_table,
    measured,
    millions,
    rates,
    short_name,
    step_seconds,
    step_time,
    with_spread,
)
from ultramem.plots import Series

TITLE = "Equal compute"
EXPLANATION = (
    "Same trunk, same tokens in the same order; FLOPs are relative to the dense model's. Times are of steps that had "
    "the machine to themselves; a loss in the dense model's time, where both were timed on one occasion, is that of a "
    "run on its way, whose learning rate has not come down. A repeated token, where these are told apart, ends a "
    "trigram that stands earlier in its window: it can be copied."
)


def section(rows: list[Row]) -> Section:
    """Every rival: its size, its loss with its spread, and what a step of it takes."""
    groups = by_settings(rows)
    dense = next(runs for runs in groups if kind_of(runs[0]) == "dense")
    in_dense_time = [loss_in_time_of(dense, runs) for runs in groups]
    best = best_by_name(groups)
    which = measured(rows)
    table = markdown_table(
        ["model", "parameters", "FLOPs", "learning rate", *(LOSSES[loss] for loss in which), "training loss",
         "ms a step", "loss in the dense model's time", "seeds"],
        [
            [
                anchored("equal_compute", runs[0], name) if runs is best[runs[0]["name"]] else name,
                millions(runs[0]["parameters"]),
                f"{runs[0]['flops_per_token'] / dense[0]['flops_per_token']:.3f}",
                rates(runs[0]),
                *losses(runs, which),
                with_spread([run["training_loss"] for run in runs]),
                step_time(runs),
                "" if loss is None else f"{loss:.3f}",
                str(len(runs)),
            ]
            for runs, loss in zip(groups, in_dense_time, strict=True)
            for name in [short_name(runs[0])]
        ],
    )  # fmt: skip
    curves = {
        "tokens": [curve(short_name(runs[0]), runs) for runs in groups],
        "seconds of training": [curve(short_name(runs[0]), runs, step) for runs in groups
                                if (step := step_seconds_timed_with(dense, runs)) is not None],
    }  # fmt: skip
    plots = {
        f"equal_compute_{label.split()[0]}.svg": picture(lines, x_label=label, y_label="validation loss", leave_out=0.3)
        for label, lines in curves.items()
        if lines
    }
    models = [*best.values()]
    return Section(table + copying(models) + health(models) + answers(groups), plots)


def curve(name: str, runs: Sequence[Row], step: float | None = None) -> Series:
    """The mean validation loss of several seeds, and each seed's, against tokens; or seconds, if a step's are given."""
    lines = [[(_x(point, runs[0], step), point["loss"]) for point in run["validation"]] for run in runs]
    mean = [(fmean(x for x, _ in points), fmean(y for _, y in points)) for points in zip(*lines, strict=False)]
    return Series(name, mean, lines if len(lines) > 1 else ())


def _x(point: Row, run: Row, step: float | None) -> float:
    if step is None:
        return point["tokens"]
    return point["tokens"] / run["tokens"] * run["settings"]["steps"] * step


def loss_at(seconds: float, points: Sequence[tuple[float, float]]) -> float | None:
    """The loss after so many seconds, between validations `(seconds, loss)`; none before the first.

    Example:
        >>> loss_at(15.0, [(10.0, 3.0), (20.0, 2.0)])
        2.5
    """
    if seconds >= points[-1][0]:
        return points[-1][1]
    for (start, high), (end, low) in pairwise(points):
        if start <= seconds <= end:
            return high + (low - high) * (seconds - start) / (end - start)
    return None


def kind_of(row: Row) -> str:
    """What a model's memories or feed-forward branches are."""
    model = row["settings"]["model"]
    return model["memory"] or ("moe" if model["ffn"] == "moe" else "dense")


def training_seconds(runs: Sequence[Row]) -> float | None:
    """What a run's steps take where it has the machine to itself."""
    step = step_seconds(runs)
    return None if step is None else step * runs[0]["settings"]["steps"]


def step_seconds_timed_with(others: Sequence[Row], runs: Sequence[Row]) -> float | None:
    """What a step of some runs takes; none where other runs' was timed on another occasion: hosts and days differ."""
    return step_seconds(runs) if occasion(runs[0]) == occasion(others[0]) else None


def loss_in_time_of(others: Sequence[Row], runs: Sequence[Row]) -> float | None:
    """The mean loss when other runs have ended; none where the steps of both were not timed together."""
    seconds, step = training_seconds(others), step_seconds_timed_with(others, runs)
    if seconds is None or step is None:
        return None
    return loss_at(seconds, curve("", runs, step).points)
