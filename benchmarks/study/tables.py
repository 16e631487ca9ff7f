"""Pieces of a Markdown page: tables, and numbers with their spread."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

Row = dict[str, Any]


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
    return row["name"].removeprefix(f"{row['scale']}-").removeprefix(f"ladder-{row['scale']}-")


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
