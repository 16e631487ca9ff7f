"""UltraMem's shape, one variant beside another."""

from benchmarks.study.page.tables import (
    LOSSES,
    Row,
    Section,
    anchored,
    by_settings,
    compared,
    difference,
    losses,
    markdown_table,
    mean_health,
    short_name,
)

TITLE = "UltraMem's shape"
EXPLANATION = (
    "The recipe, and what differs from it in one way or two, at equal compute and with tables of the same size; runs "
    "half as long. Rows read and the outputs' standard deviation are of validation at the end, the mean over memories."
)


def section(rows: list[Row]) -> Section:
    """The recipe, and every variant beside it."""
    groups = sorted(by_settings(rows), key=lambda runs: short_name(runs[0]) != "ultramem")
    recipe = groups[0]
    which = compared(rows)
    text = markdown_table(
        ["UltraMem", "FLOPs", *(title for loss in which for title in (LOSSES[loss], "beside the recipe")),
         "rows read in validation", "outputs", "seeds"],
        [
            [
                anchored("shape", runs[0], short_name(runs[0]).removeprefix("ultramem-")),
                f"{runs[0]['flops_per_token'] / recipe[0]['flops_per_token']:.3f}",
                *(
                    cell
                    for loss in which
                    for cell in (*losses(runs, [loss]), difference(runs, recipe, loss) if runs is not recipe else "")
                ),
                f"{mean_health(runs, 'rows_read'):.0%}",
                f"{mean_health(runs, 'output_std'):.2f}",
                str(len(runs)),
            ]
            for runs in groups
        ],
    )  # fmt: skip
    return Section(text, {})
