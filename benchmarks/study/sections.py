"""What the page says of each experiment, made of nothing but its rows: text and tables, and plots by file name."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log2
from statistics import fmean

from benchmarks.study.answers import answers
from benchmarks.study.picture import picture
from benchmarks.study.tables import (
    Row,
    Section,
    anchored,
    by_name,
    by_settings,
    difference,
    markdown_table,
    mean_of,
    millions,
    short_name,
    step_seconds,
    step_time,
    with_spread,
)
from ultramem.plots import Series

NO_SIZE = (
    "A larger dense model did not always end with a lower loss: a loss does not tell a size here, none is given.\n"
)


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


def equal_compute(rows: list[Row]) -> Section:
    """Every rival: its size, its loss with its spread, and what a step of it takes."""
    groups = by_settings(rows)
    dense = next(runs for runs in groups if kind_of(runs[0]) == "dense")
    in_dense_time = [loss_in(training_seconds(dense), runs) for runs in groups]
    apart = any("new_loss" in run for run in rows)
    table = markdown_table(
        ["model", "parameters", "FLOPs", "learning rate", "validation loss", "bits per byte",
         *(["loss of new tokens", "of repeated tokens"] if apart else []), "training loss", "ms a step",
         "loss in the dense model's time", "seeds"],
        [
            [
                anchored("equal_compute", runs[0], short_name(runs[0])),
                millions(runs[0]["parameters"]),
                f"{runs[0]['flops_per_token'] / dense[0]['flops_per_token']:.3f}",
                f"{runs[0]['settings']['optimizer']['learning_rate']:g}",
                *losses(runs),
                *([losses_of("new_loss", runs), losses_of("repeated_loss", runs)] if apart else []),
                with_spread([run["training_loss"] for run in runs]),
                step_time(runs),
                "" if loss is None else f"{loss:.3f}",
                str(len(runs)),
            ]
            for runs, loss in zip(groups, in_dense_time, strict=True)
        ],
    )  # fmt: skip
    curves = {
        "tokens": [curve(short_name(runs[0]), runs) for runs in groups],
        "seconds of training": [curve(short_name(runs[0]), runs, step_seconds(runs)) for runs in groups
                                if step_seconds(runs) is not None],
    }  # fmt: skip
    plots = {
        f"equal_compute_{label.split()[0]}.svg": picture(lines, x_label=label, y_label="validation loss", leave_out=0.3)
        for label, lines in curves.items()
        if lines
    }
    return Section(table + answers(groups), plots)


def kind_of(row: Row) -> str:
    """What a model's memories or feed-forward branches are."""
    model = row["settings"]["model"]
    return model["memory"] or ("moe" if model["ffn"] == "moe" else "dense")


def losses(runs: Sequence[Row]) -> tuple[str, str]:
    """Validation loss and bits per byte with their spread."""
    return with_spread([run["validation_loss"] for run in runs]), with_spread([run["bits_per_byte"] for run in runs], 4)


def losses_of(field: str, runs: Sequence[Row]) -> str:
    """A loss that older runs did not measure; beside others only where every run did."""
    measured = [run.get(field) for run in runs]
    return "" if None in measured else with_spread(measured)


def training_seconds(runs: Sequence[Row]) -> float | None:
    """What a run's steps take where it has the machine to itself."""
    step = step_seconds(runs)
    return None if step is None else step * runs[0]["settings"]["steps"]


def loss_in(seconds: float | None, runs: Sequence[Row]) -> float | None:
    """The mean loss after so many seconds of training; none where times are not known."""
    step = step_seconds(runs)
    if seconds is None or step is None:
        return None
    return loss_at(seconds, curve("", runs, step).points)


def dense_equivalent(rows: list[Row], rivals: list[Row]) -> Section:
    """The dense sizes, and for each sparse model the size of the dense model that would be as good."""
    sizes = sorted(
        by_settings([*rows, *_named("dense", rivals)]), key=lambda runs: (runs[0]["parameters"], _rate(runs[0]))
    )
    best = best_by_name(sizes)
    points = dense_points([run for runs in sizes for run in runs])
    text = markdown_table(
        ["dense model", "parameters", "learning rate", "validation loss", "bits per byte", "ms a step", "seeds"],
        [
            [
                anchored("dense_equivalent", runs[0], name) if runs is best[runs[0]["name"]] else name,
                millions(runs[0]["parameters"]),
                f"{runs[0]['settings']['optimizer']['learning_rate']:.2g}",
                *losses(runs),
                step_time(runs),
                str(len(runs)),
            ]
            for runs in sizes
            for name in [short_name(runs[0])]
        ],
    )
    sparse = [runs for runs in by_settings(rivals) if runs[0]["parameters"] > 2 * runs[0]["active_parameters"]]
    if not descending(points):
        text += "\n" + NO_SIZE
    elif sparse and len(points) > 1:
        text += "\n" + markdown_table(
            ["sparse model", "validation loss", "as good as a dense model of", "times its active parameters"],
            [
                [short_name(runs[0]), f"{mean_of(runs, 'validation_loss'):.3f}", *_equivalent(points, runs)]
                for runs in sparse
            ],
        )
    plot = picture(
        [
            Series("dense", points),
            *(
                Series(short_name(runs[0]), [(runs[0]["active_parameters"], mean_of(runs, "validation_loss"))])
                for runs in sparse
            ),
        ],
        x_label="active parameters",
        y_label="validation loss",
    )
    return Section(text, {"dense_equivalent.svg": plot})


def dense_points(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """The dense sizes, ascending, each with the mean loss at its best learning rate."""
    best = best_by_name(by_settings(rows)).values()
    return sorted((runs[0]["active_parameters"], mean_of(runs, "validation_loss")) for runs in best)


def descending(points: Sequence[tuple[float, float]]) -> bool:
    """Whether every larger dense model is better: else a loss does not tell a size."""
    return all(loss > larger for (_, loss), (_, larger) in pairwise(points))


def _equivalent(points: list[tuple[float, float]], runs: list[Row]) -> tuple[str, str]:
    """Log-linear interpolation between the dense sizes; beyond them no more than the bound is said."""
    size = dense_size_for(mean_of(runs, "validation_loss"), points)
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


def _named(name: str, rivals: list[Row]) -> list[Row]:
    return [row for row in rivals if short_name(row) == name]


def table_size(rows: list[Row], rivals: list[Row]) -> Section:
    """Loss, time and use of the table against its rows."""
    sizes = sorted(by_settings([*rows, *_named("ultramem", rivals)]), key=lambda runs: runs[0]["table_parameters"])
    smallest = sizes[0][0]["table_parameters"]
    text = markdown_table(
        ["rows", "parameters of the tables", "validation loss", "bits per byte", "ms a step", "rows read in validation",
         "seeds"],
        [
            [
                anchored("table_size", runs[0], f"x{runs[0]['table_parameters'] / smallest:.0f}"),
                millions(runs[0]["table_parameters"]),
                *losses(runs),
                step_time(runs),
                f"{mean_health(runs, 'rows_read'):.0%}",
                str(len(runs)),
            ]
            for runs in sizes
        ],
    )  # fmt: skip

    def line(of: Callable[[list[Row]], float]) -> list[tuple[float, float]]:
        return [(log2(runs[0]["table_parameters"] / smallest), of(runs)) for runs in sizes]

    seeds = min(len(runs) for runs in sizes)
    each = [line(lambda runs, number=number: runs[number]["validation_loss"]) for number in range(seeds)]
    mean = Series("UltraMem", line(lambda runs: mean_of(runs, "validation_loss")), each if seeds > 1 else ())
    plot = picture([mean], x_label="doublings of the smallest table", y_label="validation loss")
    return Section(text, {"table_size.svg": plot})


def shape(rows: list[Row]) -> Section:
    """The recipe, and every variant beside it."""
    groups = sorted(by_settings(rows), key=lambda runs: short_name(runs[0]) != "ultramem")
    recipe = groups[0]
    text = markdown_table(
        ["UltraMem", "FLOPs", "validation loss", "beside the recipe", "rows read in validation", "outputs", "seeds"],
        [
            [
                anchored("shape", runs[0], short_name(runs[0]).removeprefix("ultramem-")),
                f"{runs[0]['flops_per_token'] / recipe[0]['flops_per_token']:.3f}",
                with_spread([run["validation_loss"] for run in runs]),
                difference(runs, recipe, "validation_loss") if runs is not recipe else "",
                f"{mean_health(runs, 'rows_read'):.0%}",
                f"{mean_health(runs, 'output_std'):.2f}",
                str(len(runs)),
            ]
            for runs in groups
        ],
    )
    return Section(text, {})


def mean_health(runs: Sequence[Row], field: str) -> float:
    """The mean over runs and their memories."""
    return fmean(health[field] for run in runs for health in run["memory"].values())


def learning_rates(rows: list[Row]) -> Section:
    """All runs of the sweep, the best of each model in bold, and whose best has no other beyond it."""
    models = by_name(sorted(rows, key=_rate))
    best = [min(runs, key=lambda row: row["validation_loss"]) for runs in models.values()]
    ends = [
        f"{short_name(row)} ({end})"
        for row, runs in zip(best, models.values(), strict=True)
        for end, at in (("lowest", 0), ("highest", -1))
        if _rate(row) == _rate(runs[at])
    ]

    def loss(row: Row) -> str:
        shown = f"**{row['validation_loss']:.3f}**" if row in best else f"{row['validation_loss']:.3f}"
        return f"{shown} at {row['tokens'] / 1e6:.1f}M tokens, then not finite" if "ended_early" in row else shown

    text = markdown_table(
        ["model", "learning rate", "tables' multiple, at first", "its horizon", "validation loss"],
        [
            [
                short_name(row),
                f"{optimizer['learning_rate']:g}",
                f"{optimizer['table_multiplier_start']:g}" if row["table_parameters"] else "",
                _horizon(row) if row["table_parameters"] else "",
                loss(row),
            ]
            for runs in models.values()
            for row in runs
            for optimizer in [row["settings"]["optimizer"]]
        ],
    )
    if ends:
        text += f"\nA better rate may lie beyond those tried of {', '.join(ends)}.\n"
    return Section(text, {})


def _rate(row: Row) -> float:
    return row["settings"]["optimizer"]["learning_rate"]


def _horizon(row: Row) -> str:
    steps = row["settings"]["optimizer"]["table_horizon_steps"]
    return "the run" if steps is None else f"{steps / row['settings']['steps']:.0%} of the run"


def knowledge(rows: list[Row]) -> Section:
    """What each model stores of how many people's facts, at each learning rate; links lead to its best one."""

    def asked(runs: list[Row], field: str) -> list[float]:
        return [run["afterwards"][field] for run in runs]

    def order(runs: list[Row]) -> tuple[float, ...]:
        return runs[0]["afterwards"]["persons"], runs[0]["parameters"], _rate(runs[0])

    groups = sorted(by_settings(rows), key=order)
    best = best_by_name(groups)
    text = markdown_table(
        ["model", "parameters", "people", "learning rate", "exact recall", "bits a person", "bits stored",
         "bits a parameter", "seeds"],
        [
            [
                anchored("knowledge", runs[0], kind) if runs is best[runs[0]["name"]] else kind,
                millions(runs[0]["parameters"]),
                f"{runs[0]['afterwards']['persons']:,}",
                f"{_rate(runs[0]):g}",
                with_spread([100 * share for share in asked(runs, "exact_recall")], 1) + "%",
                with_spread(asked(runs, "bits_a_person"), 1),
                f"{mean_stored(runs):,.0f}",
                f"{mean_stored(runs) / runs[0]['parameters']:.3f}",
                str(len(runs)),
            ]
            for runs in groups
            for kind in [rival_of(runs[0])]
        ],
    )  # fmt: skip
    kinds: dict[str, list[tuple[float, float]]] = {}
    for runs in best.values():
        point = (runs[0]["afterwards"]["persons"], fmean(asked(runs, "exact_recall")))
        kinds.setdefault(rival_of(runs[0]), []).append(point)
    plot = picture(
        [Series(name, sorted(points)) for name, points in kinds.items()], x_label="people", y_label="exact recall"
    )
    return Section(text, {"knowledge.svg": plot})


def rival_of(row: Row) -> str:
    """Which model was told of people."""
    return row["name"].partition("-")[0]


def best_by_name(groups: Sequence[list[Row]]) -> dict[str, list[Row]]:
    """By name the runs with the lowest mean loss of those with other settings."""
    best: dict[str, list[Row]] = {}
    for runs in sorted(groups, key=lambda runs: mean_of(runs, "validation_loss")):
        best.setdefault(runs[0]["name"], runs)
    return best


def mean_stored(runs: Sequence[Row]) -> float:
    """The bits that a model has stored, the mean over its runs."""
    return fmean(run["afterwards"]["stored_bits"] for run in runs)
