"""What people see of a run: a progress bar while it goes on, a table at its end, TensorBoard on request."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class Display(AbstractContextManager["Display"]):
    """A progress bar on standard error; where that is no terminal, a line for each record instead.

    Args:
        name: of the run.
        step: where it begins.
        steps: where it ends.
        tensorboard: folder for TensorBoard's files; none: none are written.

    Raises:
        ValueError: TensorBoard is asked for and not installed.
    """

    def __init__(self, name: str, *, step: int, steps: int, tensorboard: Path | None = None):
        self._console = Console(stderr=True)
        self._writer = _tensorboard_writer(tensorboard, step) if tensorboard else None
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, completed=step, total=steps, numbers="")
        self._steps = steps

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Move the bar to a step."""
        self._bar.update(self._task, completed=step, numbers=f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s")

    def record(self, record: dict[str, Any]) -> None:
        """Show a line of metrics."""
        if not self._console.is_terminal:
            shown = "  ".join(f"{name} {value:.6g}" for name, value in _scalars(record) if name != "step")
            self._console.print(f"step {record['step']}/{self._steps}  {shown}", highlight=False, soft_wrap=True)
        elif "validation_loss" in record:
            text = f"step {record['step']}: validation loss {record['validation_loss']:.4f}"
            self._console.print(text, highlight=False)
        if self._writer is not None:
            for name, value in _scalars(record):
                self._writer.add_scalar(name, value, record["step"])


def show_summary(summary: dict[str, Any]) -> None:
    """Print the table of a run that has ended."""
    table = Table(title=f"{summary['name']}: {summary['status']}", show_header=False)
    for name, value in _scalars(summary):
        table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    console = Console(stderr=True)
    console.print(table)
    if summary["status"] != "finished":
        console.print("The same command goes on from here.", highlight=False)


def show_note(text: str) -> None:
    """Print a line that a user should not miss."""
    Console(stderr=True).print(f"note: {text}", highlight=False, soft_wrap=True, markup=False)


def _scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Walk through a record's numbers; those of nested records are named "outer/inner"."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard is true, but TensorBoard is not installed: pip install 'ultramem-pytorch[logging]'"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)
