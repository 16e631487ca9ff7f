"""Of what size a dense model is as good as each sparse one."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2

from benchmarks.study.page.picture import picture
from benchmarks.study.page.tables import (
    Row,
    Section,
    anchored,
    best_by_name,
    by_settings,
    learning_rate,
    losses,
    markdown_table,
    mean_of,
    millions,
    named,
    short_name,
    step_time,
)
from ultramem.plots import Series

TITLE = "As good as a dense model of what size?"
EXPLANATION = (
    "Larger dense models on the same tokens, beside those of equal compute; where larger ones are better, the size "
    "between two of them is interpolated."
)
NO_SIZE = (
    "A larger dense model did not always end with a lower loss: a loss does not tell a size here, none is given.\n"
)


def section(rows: list[Row], rivals: list[Row]) -> Section:
    """The dense sizes, and for each sparse model the size of the dense model that would be as good."""
    sizes = sorted(
        by_settings([*rows, *named("dense", rivals)]), key=lambda runs: (runs[0]["parameters"], learning_rate(runs[0]))
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
