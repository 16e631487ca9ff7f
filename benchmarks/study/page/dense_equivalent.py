"""Of what size a dense model is as good as each sparse one."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2

from benchmarks.study.page.picture import picture
from benchmarks.study.page.tables import (
    LOSSES,
    Row,
    Section,
    anchored,
    best_by_name,
    by_settings,
    learning_rate,
    losses,
    markdown_table,
    mean_of,
    measured,
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
COMPARED = ("validation_loss", "new_loss")
NO_SIZE = "A larger dense model did not always end with a lower {}: it does not tell a size here, none is given.\n"


def section(rows: list[Row], rivals: list[Row]) -> Section:
    """The dense sizes, and for each sparse model the size of the dense model that would be as good."""
    dense = [*rows, *named("dense", rivals)]
    sizes = sorted(by_settings(dense), key=lambda runs: (runs[0]["parameters"], learning_rate(runs[0])))
    best = best_by_name(sizes)
    sparse = [runs for runs in by_settings(rivals) if runs[0]["parameters"] > 2 * runs[0]["active_parameters"]]
    which = measured(dense)
    text = markdown_table(
        ["dense model", "parameters", "learning rate", *(LOSSES[loss] for loss in which), "ms a step", "seeds"],
        [
            [
                anchored("dense_equivalent", runs[0], name) if runs is best[runs[0]["name"]] else name,
                millions(runs[0]["parameters"]),
                f"{learning_rate(runs[0]):.2g}",
                *losses(runs, which),
                step_time(runs),
                str(len(runs)),
            ]
            for runs in sizes
            for name in [short_name(runs[0])]
        ],
    )  # fmt: skip
    if sparse and rows:
        told = [loss for loss in COMPARED if all(loss in run for run in [*dense, *rivals])]
        text += "".join(f"\n{_as_good(sparse, dense_points(dense, loss), loss)}" for loss in told)
    points = dense_points(dense)
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


def _as_good(sparse: list[list[Row]], points: list[tuple[float, float]], loss: str) -> str:
    """By one of the losses: the sizes, or that it does not tell them."""
    if not descending(points):
        return NO_SIZE.format(LOSSES[loss])
    return markdown_table(
        ["sparse model", LOSSES[loss], "as good as a dense model of", "times its active parameters"],
        [[short_name(runs[0]), f"{mean_of(runs, loss):.3f}", *_equivalent(points, runs, loss)] for runs in sparse],
    )


def dense_points(rows: Sequence[Row], loss: str = "validation_loss") -> list[tuple[float, float]]:
    """The dense sizes, ascending, each with its mean loss at the learning rate that is best in validation."""
    best = best_by_name(by_settings(rows)).values()
    return sorted((runs[0]["active_parameters"], mean_of(runs, loss)) for runs in best)


def descending(points: Sequence[tuple[float, float]]) -> bool:
    """Whether every larger dense model is better: else a loss does not tell a size."""
    return all(loss > larger for (_, loss), (_, larger) in pairwise(points))


def _equivalent(points: list[tuple[float, float]], runs: list[Row], loss: str) -> tuple[str, str]:
    """Log-linear interpolation between the dense sizes; beyond them no more than the bound is said."""
    size = dense_size_for(mean_of(runs, loss), points)
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
