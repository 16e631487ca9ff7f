"""Finished runs as the page reads them: with the time of a step of their model alone, where it was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.study.page.speed import Line, kept_lines
from benchmarks.study.page.tables import Row
from benchmarks.study.results import Results
from benchmarks.study.step_time import EXPERIMENT as STEP_TIME


def with_step_times(rows: Sequence[Row], times: Sequence[Row]) -> list[Row]:
    """Give runs, which others slowed down, the time of a step of their model alone, where it was measured."""
    return [row | next((_timed(row, time) for time in times if _same_step(row, time)), {}) for row in rows]


def occasion(row: Row) -> tuple[str, str]:
    """When a time was taken: those of one commit and day had, most likely, one host."""
    return row.get("timed_on", (row["commit"], row["date"]))


def _same_step(row: Row, time: Row) -> bool:
    same = ("model", "batch_size", "sequence_length")
    alike = all(row["settings"][name] == time["settings"][name] for name in same)
    return alike and row["hardware"] == time["hardware"]


def _timed(row: Row, time: Row) -> Row:
    settings = row["settings"] | {"compile": time["settings"]["compile"]}
    return {
        "seconds_per_step": time["seconds_per_step"],
        "side_by_side": 1,
        "settings": settings,
        "timed_on": occasion(time),
    }


class Kept(NamedTuple):
    """Everything that was measured: the study's runs, and the benchmarks' CSV files in the folder above them."""

    folder: Path

    def runs(self, experiment: str) -> list[Row]:
        """Runs of one experiment, a step's time that which `step_time` has measured, if it has."""
        results = Results(experiment, self.folder, self.folder)
        return with_step_times(results.rows(), results.of(STEP_TIME))

    def of_scale(self, experiment: str, scale: str) -> list[Row]:
        """Those of one scale."""
        return [row for row in self.runs(experiment) if row["scale"] == scale]

    def lines(self, name: str) -> list[Line]:
        """Rows of one benchmark."""
        return kept_lines(self.folder.parent, name)
