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
    compared,
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
NO_SIZE = "A larger dense model did not always end with a lower {}: so this loss tells no size here.\n"


def section(rows: list[Row], rivals: list[Row]) -> Section:
    """The dense sizes, and for each sparse model the size of the dense model that would be as good."""
    dense = [*rows, *named("dense", rivals)]
    sizes = sorted(by_settings(dense), key=lambda runs: (runs[0]["parameters"], learning_rate(runs[0])))
    best = best_by_name(sizes)
    sparse = [
        runs
        for runs in best_by_name(by_settings(rivals)).values()
        if runs[0]["parameters"] > 2 * runs[0]["active_parameters"]
    ]
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
    told = compared([*dense, *rivals])
    if sparse:
        text += "".join(f"\n{_as_good(sparse, dense_points(dense, loss), loss)}" for loss in told)
    loss = told[-1]
    points = dense_points(dense, loss)
    plot = picture(
        [
            Series("dense", points),
            *(Series(short_name(runs[0]), [(runs[0]["active_parameters"], mean_of(runs, loss))]) for runs in sparse),
        ],
        x_label="active parameters",
        y_label=LOSSES[loss],
    )
    return Section(text, {"dense_equivalent.svg": plot})


def _as_good(sparse: list[list[Row]], points: list[tuple[float, float]], loss: str) -> str:
    """By one of the losses: the sizes, or that it does not tell them."""
    if not descending(points):
        return NO_SIZE.format(LOSSES[loss])
    return markdown_table(
        ["sparse model", LOSSES[loss], "as good as a dense model of", "times its active parameters"],
        [
            [
                anchored("as_good", runs[0], short_name(runs[0])) if loss == "new_loss" else short_name(runs[0]),
                f"{mean_of(runs, loss):.3f}",
                *as_good_as(points, runs, loss),
            ]
            for runs in sparse
        ],
    )


def dense_points(rows: Sequence[Row], loss: str = "validation_loss") -> list[tuple[float, float]]:
    """The dense sizes, ascending, each with its mean loss at its best learning rate, as `best_by_name` has it."""
    best = best_by_name(by_settings(rows), loss).values()
    return sorted((runs[0]["active_parameters"], mean_of(runs, loss)) for runs in best)


def descending(points: Sequence[tuple[float, float]]) -> bool:
    """Whether every larger dense model is better: else a loss does not tell a size."""
    return all(loss > larger for (_, loss), (_, larger) in pairwise(points))


def as_good_as(points: list[tuple[float, float]], runs: list[Row], loss: str) -> tuple[str, str]:
    """The dense model's size, and how many times its own that is, log-linear between two; beyond them a bound."""
    size = dense_size_for(mean_of(runs, loss), points)
    if isinstance(size, str):
        return size, ""
    return millions(size), f"{size / runs[0]['active_parameters']:.2f}"


def dense_size_for(loss: float, points: Sequence[tuple[float, float]]) -> float | str:
    """The parameters of the dense model of this loss, or what is said beyond all sizes.

    Args:
        loss: to reach.
        points: sizes `(parameters, loss)`, ascending, their losses descending.

    Example:
        >>> dense_size_for(2.5, [(10.0, 3.0), (1000.0, 2.0)])
        100.0
    """
    if loss > points[0][1]:
        return f"less than {millions(points[0][0])}"
    for (size, high), (next_size, low) in pairwise(points):
        if low <= loss <= high:
            return size * 2 ** ((high - loss) / (high - low) * log2(next_size / size))
    return f"more than {millions(points[-1][0])}"
