"""Facts that the models have stored."""

from collections.abc import Sequence
from statistics import fmean

from benchmarks.study.page.picture import picture
from benchmarks.study.page.tables import (
    Row,
    Section,
    anchored,
    best_by_name,
    by_settings,
    learning_rate,
    markdown_table,
    millions,
    with_spread,
)
from ultramem.plots import Series

TITLE = "Stored facts"
EXPLANATION = (
    "Synthetic biographies, each person told of a hundred times; a person's facts hold 46.6 bits. Rates are tried "
    "with the fewest people; links lead to a model's lowest validation loss."
)


def section(rows: list[Row]) -> Section:
    """What each model stores of how many people's facts, at each learning rate; links lead to its best one."""

    def asked(runs: list[Row], field: str) -> list[float]:
        return [run["afterwards"][field] for run in runs]

    def order(runs: list[Row]) -> tuple[float, ...]:
        return runs[0]["afterwards"]["persons"], runs[0]["parameters"], learning_rate(runs[0])

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
                f"{learning_rate(runs[0]):g}",
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
    return row["name"].removesuffix("-people").rpartition("-")[0]


def mean_stored(runs: Sequence[Row]) -> float:
    """The bits that a model has stored, the mean over its runs."""
    return fmean(run["afterwards"]["stored_bits"] for run in runs)
