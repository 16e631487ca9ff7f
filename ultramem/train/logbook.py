"""What a run tells while it goes on: to its journal and to people, by the first process for all."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ultramem.distributed.agreement import is_first_rank, together
from ultramem.train.config import TrainConfig
from ultramem.train.display import Display
from ultramem.train.journal import Journal
from ultramem.train.run_folder import RunFolder


class Logbook:
    """A run's journal and display on the first process, nothing on the others; all of them make the same calls."""

    def __init__(self, journal: Journal | None, display: Display | None):
        self._journal, self._display = journal, display
        self._begun = time.perf_counter() - (journal.seconds if journal else 0.0)

    @classmethod
    @contextmanager
    def open(cls, folder: RunFolder, config: TrainConfig, step: int) -> Iterator["Logbook"]:
        """Record a start at a step, and show the run until the end of the context.

        Raises:
            OSError: the folder cannot be written, on all processes.
            ValueError: TensorBoard is asked for and not installed.
        """
        journal = display = None
        with together():
            if is_first_rank():
                journal = Journal(folder.metrics, step=step)
                folder.record_start(step)
                tensorboard = folder.tensorboard if config.tensorboard else None
                display = Display(config.name, step=step, steps=config.steps, tensorboard=tensorboard)
        with display or nullcontext():
            yield cls(journal, display)

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Move the display to a step."""
        if self._display is not None:
            self._display.advance(step, loss, tokens_per_second)

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Keep and show what was measured at a step.

        Raises:
            OSError: the journal cannot be written, on all processes.
        """
        line = {"step": step, **values, "seconds": time.perf_counter() - self._begun}
        with together():
            if self._journal is not None and self._display is not None:
                self._journal.write(line)
                self._display.record(line)
