"""Finished runs of an experiment: one JSON object a line, appended as each run ends, so that a study can be resumed."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from ultramem.train.config import TrainConfig
from ultramem.train.config_json import config_to_dict, with_defaults

KEPT = RESULTS / "study"

# What the data decides, and how it is computed: neither makes another run.
_DATA_DECIDES = ("vocab_size", "bos_token_id", "eos_token_id")
_HOW_IT_IS_COMPUTED = ("compile", "activation_checkpointing")


class Results:
    """The rows of one experiment.

    Args:
        experiment: its name, and that of the file.
        folder: where the file lies; a new one begins with what is kept in `kept`.
        kept: the folder of the results that are in the repository.
    """

    def __init__(self, experiment: str, folder: Path, kept: Path = KEPT):
        self.path = folder / f"{experiment}.jsonl"
        self._kept = kept
        folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() and (kept / self.path.name).exists():
            shutil.copyfile(kept / self.path.name, self.path)

    def of(self, experiment: str) -> list[dict[str, Any]]:
        """The rows of another experiment, from the same folders."""
        return Results(experiment, self.path.parent, self._kept).rows()

    def rows(self) -> list[dict[str, Any]]:
        """All finished runs, in the order in which they ended."""
        if not self.path.exists():
            return []
        # A kill may tear the last line; it is left out, and its run made again.
        return [json.loads(line) for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def has(self, config: TrainConfig) -> bool:
        """Whether this very run is there: name, seed and all settings. One that a row lacks had its default."""
        return not any(self.missing([config]))

    def missing(self, configs: Iterable[TrainConfig]) -> Iterator[TrainConfig]:
        """Those of some runs that are not there."""
        there = [_comparable(row["settings"]) for row in self.rows()]
        return (config for config in configs if _comparable(config_to_dict(config)) not in there)

    def add(self, row: dict[str, Any]) -> None:
        """Append a finished run and hand it to the operating system."""
        complete = "".join(json.dumps(row) + "\n" for row in self.rows())
        if self.path.exists() and self.path.read_text() != complete:
            self.path.write_text(complete)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    compared = {name: value for name, value in with_defaults(settings).items() if name not in _HOW_IT_IS_COMPUTED}
    model = {name: value for name, value in compared["model"].items() if name not in _DATA_DECIDES}
    return compared | {"model": model}
