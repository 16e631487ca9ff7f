"""What the page says of each experiment, made of nothing but its rows: text and tables, and plots by file name."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2
from statistics import fmean
from typing import NamedTuple

from benchmarks.study.ladder import PAPER, PAPER_ALONE
from benchmarks.study.picture import picture
from benchmarks.study.tables import (
    Row,
    by_name,
    markdown_table,
    mean_of,
    millions,
    short_name,
    with_spread,
)
from ultramem.plots import Series


class Section(NamedTuple):
    """A part of the page, and the plots that it shows."""

    text: str
    plots: dict[str, str]


def curve(name: str, runs: Sequence[Row], axis: str) -> Series:
    """The mean validation loss of several seeds against tokens or seconds, and each seed's."""
    lines = [[(point[axis], point["loss"]) for point in run["validation"]] for run in runs]
    mean = [(fmean(x for x, _ in points), fmean(y for _, y in points)) for points in zip(*lines, strict=True)]
    return Series(name, mean, lines if len(lines) > 1 else ())


def equal_compute(rows: list[Row]) -> Section:
    """Every rival: its size, its loss with its spread, and what a step of it takes."""
    grouped = by_name(rows)
    dense, *_ = (runs for runs in grouped.values() if runs[0]["settings"]["model"]["memory"] is None)
    table = markdown_table(
        ["model", "parameters", "FLOPs", "learning rate", "validation loss", "bits per byte", "training loss",
         "ms a step", "seeds"],
        [
            [
                short_name(runs[0]),
                millions(runs[0]["parameters"]),
                f"{runs[0]['flops_per_token'] / dense[0]['flops_per_token']:.3f}",
                f"{runs[0]['settings']['optimizer']['learning_rate']:g}",
                with_spread([run["validation_loss"] for run in runs]),
                with_spread([run["bits_per_byte"] for run in runs], 4),
                with_spread([run["training_loss"] for run in runs]),
                with_spread([run["seconds_per_step"] * 1e3 for run in runs], 1),
                str(len(runs)),
            ]
            for runs in grouped.values()
        ],
    )  # fmt: skip
    plots = {
        f"equal_compute_{axis}.svg": picture(
            [curve(short_name(runs[0]), runs, axis) for runs in grouped.values()],
            x_label=label,
            y_label="validation loss",
            leave_out=0.3,
        )
        for axis, label in (("tokens", "tokens"), ("seconds", "seconds of training"))
    }
    return Section(table, plots)


def dense_equivalent(rows: list[Row], rivals: list[Row]) -> Section:
    """The dense sizes, and for each sparse model the size of the dense model that would be as good."""
    points = sorted((row["active_parameters"], row["validation_loss"], short_name(row)) for row in rows)
    text = markdown_table(
        ["dense model", "parameters", "validation loss", "ms a step"],
        [
            [short_name(row), millions(row["parameters"]), f"{row['validation_loss']:.3f}",
             f"{row['seconds_per_step'] * 1e3:.1f}"]
            for row in sorted(rows, key=lambda row: row["parameters"])
        ],
    )  # fmt: skip
    sparse = [runs for runs in by_name(rivals).values() if runs[0]["parameters"] > 2 * runs[0]["active_parameters"]]
    if sparse and len(points) > 1:
        text += "\n" + markdown_table(
            ["sparse model", "validation loss", "as good as a dense model of", "times its active parameters"],
            [
                [short_name(runs[0]), f"{mean_of(runs, 'validation_loss'):.3f}", *_equivalent(points, runs)]
                for runs in sparse
            ],
        )
    plot = picture(
        [
            Series("dense", [(size, loss) for size, loss, _ in points]),
            *(
                Series(short_name(runs[0]), [(runs[0]["active_parameters"], mean_of(runs, "validation_loss"))])
                for runs in sparse
            ),
        ],
        x_label="active parameters",
        y_label="validation loss",
    )
    return Section(text, {"dense_equivalent.svg": plot})


def _equivalent(points: list[tuple[float, float, str]], runs: list[Row]) -> tuple[str, str]:
    """Log-linear interpolation between the dense sizes; beyond them no more than the bound is said."""
    size = dense_size_for(mean_of(runs, "validation_loss"), [(size, loss) for size, loss, _ in points])
    if isinstance(size, str):
        return size, ""
    return millions(size), f"{size / runs[0]['active_parameters']:.2f}"


def dense_size_for(loss: float, points: Sequence[tuple[float, float]]) -> float | str:
    """The parameters of the dense model of this loss, between sizes `(parameters, loss)` in ascending order.

    Example:
        >>> dense_size_for(2.5, [(10.0, 3.0), (1000.0, 2.0)])
        100.0
    """
    if loss > points[0][1]:
        return f"less than {millions(points[0][0])}"
    for (size, high), (next_size, low) in pairwise(points):
        if low <= loss <= high:
            share = (high - loss) / (high - low) if high > low else 0.0
            return size * 2 ** (share * log2(next_size / size))
    return f"more than {millions(points[-1][0])}"


def table_size(rows: list[Row]) -> Section:
    """Loss, time and use of the table against its rows."""
    rows = sorted(rows, key=lambda row: row["table_parameters"])
    text = markdown_table(
        ["rows", "parameters of the tables", "validation loss", "ms a step", "rows read in validation"],
        [
            [
                short_name(row).rpartition("-")[2],
                millions(row["table_parameters"]),
                f"{row['validation_loss']:.3f}",
                f"{row['seconds_per_step'] * 1e3:.1f}",
                f"{fmean(health['rows_read'] for health in row['memory'].values()):.0%}",
            ]
            for row in rows
        ],
    )
    smallest = rows[0]["table_parameters"]
    points = [(log2(row["table_parameters"] / smallest), row["validation_loss"]) for row in rows]
    plot = picture([Series("UltraMem", points)], x_label="doublings of the smallest table", y_label="validation loss")
    return Section(text, {"table_size.svg": plot})


def ladder(rows: list[Row]) -> Section:
    """Each rung beside the paper's, and what varies alone against the rung below."""
    runs = {short_name(same[0]): same for same in by_name(rows).values()}
    losses = {name: mean_of(same, "validation_loss") for name, same in runs.items()}
    spread = {name: with_spread([row["validation_loss"] for row in same]) for name, same in runs.items()}
    milliseconds = {name: mean_of(same, "seconds_per_step") * 1e3 for name, same in runs.items()}
    rungs = [name for name in PAPER if name in losses]
    below = {above[:2]: losses[name] for name, above in pairwise(PAPER) if name in losses}
    paper_below = {above[:2]: PAPER[name] for name, above in pairwise(PAPER)}

    def step(name: str, values: dict[str, float], lower: dict[str, float]) -> str:
        return f"{values[name] - lower[name[:2]]:+.3f}" if name[:2] in lower else ""

    text = markdown_table(
        ["step", "validation loss", "the step gives", "in the paper", "ms a step"],
        [
            [name, spread[name], step(name, losses, below), step(name, PAPER, paper_below),
             f"{milliseconds[name]:.1f}"]
            for name in rungs
        ],
    )  # fmt: skip
    alone = [name for name in PAPER_ALONE if name in losses and name[:2] in below]
    if alone:
        text += "\n" + markdown_table(
            ["alone, on the rung below", "validation loss", "gives", "in the paper"],
            [
                [name, spread[name], step(name, losses, below), f"{PAPER_ALONE[name]:+.4f}".rstrip("0")]
                for name in sorted(alone, key=list(PAPER_ALONE).index)
            ],
        )
    numbers = {name: number for number, name in enumerate(PAPER)}
    plot = picture(
        [
            Series("here", [(numbers[name], losses[name] - losses[rungs[0]]) for name in rungs]),
            Series("paper, 151M", [(numbers[name], PAPER[name] - PAPER[rungs[0]]) for name in rungs]),
        ],
        x_label="steps from product keys to UltraMem",
        y_label="validation loss, against product keys",
    )
    return Section(text, {"ladder.svg": plot})


def learning_rates(rows: list[Row]) -> Section:
    """All runs of the sweep."""
    text = markdown_table(
        ["model", "learning rate", "tables' multiple, at first", "its horizon", "validation loss"],
        [
            [
                short_name(row),
                f"{optimizer['learning_rate']:g}",
                f"{optimizer['table_multiplier_start']:g}" if row["table_parameters"] else "",
                _horizon(row) if row["table_parameters"] else "",
                f"{row['validation_loss']:.3f}",
            ]
            for row in rows
            for optimizer in [row["settings"]["optimizer"]]
        ],
    )
    return Section(text, {})


def _horizon(row: Row) -> str:
    steps = row["settings"]["optimizer"]["table_horizon_steps"]
    return "the run" if steps is None else f"{steps / row['settings']['steps']:.0%} of the run"


def knowledge(rows: list[Row]) -> Section:
    """What each model stores of how many people's facts."""

    def kind(row: Row) -> str:
        return row["name"].partition("-")[0]

    text = markdown_table(
        ["model", "parameters", "people", "exact recall", "bits a person", "bits stored", "bits a parameter"],
        [
            [
                kind(row),
                millions(row["parameters"]),
                f"{quiz['persons']:,}",
                f"{quiz['exact_recall']:.1%}",
                f"{quiz['bits_a_person']:.1f}",
                f"{quiz['stored_bits']:,.0f}",
                f"{quiz['stored_bits'] / row['parameters']:.3f}",
            ]
            for row in rows
            for quiz in [row["afterwards"]]
        ],
    )
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = (row["afterwards"]["persons"], row["afterwards"]["exact_recall"])
        kinds.setdefault(kind(row), []).append(point)
    plot = picture(
        [Series(name, sorted(points)) for name, points in kinds.items()], x_label="people", y_label="exact recall"
    )
    return Section(text, {"knowledge.svg": plot})
