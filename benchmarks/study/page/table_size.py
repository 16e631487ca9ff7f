"""UltraMem with fewer rows."""

from collections.abc import Callable
from math import log2

from benchmarks.study.page.picture import picture
from benchmarks.study.page.tables import (
    LOSSES,
    Row,
    Section,
    anchored,
    by_settings,
    losses,
    markdown_table,
    mean_health,
    mean_of,
    measured,
    millions,
    named,
    step_time,
)
from ultramem.plots import Series

TITLE = "Rows of the table"
EXPLANATION = "UltraMem with fewer rows, and as many parameters in its matrices; all rows: that of equal compute."


def section(rows: list[Row], rivals: list[Row]) -> Section:
    """Loss, time and use of the table against its rows."""
    sizes = sorted(by_settings([*rows, *named("ultramem", rivals)]), key=lambda runs: runs[0]["table_parameters"])
    which = measured([run for runs in sizes for run in runs])
    smallest = sizes[0][0]["table_parameters"]
    text = markdown_table(
        ["rows", "parameters of the tables", *(LOSSES[loss] for loss in which), "ms a step",
         "rows read in validation", "seeds"],
        [
            [
                anchored("table_size", runs[0], f"x{runs[0]['table_parameters'] / smallest:.0f}"),
                millions(runs[0]["table_parameters"]),
                *losses(runs, which),
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
