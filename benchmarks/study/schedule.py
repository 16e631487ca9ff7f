"""Makes runs, some side by side, each in a process of its own, until all are there or the time is over."""

import math
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.study.results import Results
from benchmarks.study.run import train_and_measure
from benchmarks.study.scales import START_SECONDS
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.train.config import TrainConfig

# A fork would inherit threads and a GPU's state.
_PROCESSES = multiprocessing.get_context("spawn")

Afterwards = Callable[[UltraMemForCausalLM], dict[str, Any]]


class Wanted(NamedTuple):
    """A run that an experiment lacks.

    Fields:
        results: where its row belongs.
        config: the run.
        data: folder made by `ultramem prepare`.
        seconds: that its steps probably take on its own; `START_SECONDS` come on top.
        labels: what its row says besides.
        afterwards: measures the trained model once more.
        alone: whether nothing else may run meanwhile, so that its time is its own.
    """

    results: Results
    config: TrainConfig
    data: Path
    seconds: float
    labels: dict[str, Any]
    afterwards: Afterwards | None = None
    alone: bool = False

    def among(self, others: Iterable["Wanted"]) -> bool:
        """Whether it is one of others, asked for again."""
        return any(self.results.path == other.results.path and self.config == other.config for other in others)

    def __str__(self) -> str:
        return f"{self.results.path.stem} {self.config.name}, seed {self.config.seed}"


class _Child(NamedTuple):
    run: Wanted
    process: BaseProcess
    begun: float
    predicted: float


def make(wanted: Callable[[], Iterable[Wanted]], *, side_by_side: int = 1, seconds: float = math.inf) -> bool:
    """Make runs, and keep each as soon as it has ended.

    A run begins only if it should end in time, as far as those before it can tell. What has not ended when the time
    is over is given up: nothing of it is kept, and the next call makes it anew.

    Args:
        wanted: asked again before every run: those that are lacking, in the order of their worth. More may be wanted
            after a run has ended, where that decides the settings of others.
        side_by_side: how many at a time, but for those that are to be alone.
        seconds: after which everything has ended.

    Returns:
        Whether nothing is wanted any more.
    """
    deadline = time.monotonic() + seconds
    children: dict[Connection, _Child] = {}
    failed: list[Wanted] = []
    paces: list[float] = []
    try:
        while True:
            for run in _startable(wanted(), failed, list(children.values()), side_by_side):
                predicted = START_SECONDS + run.seconds * (1 if run.alone else side_by_side)
                now = time.monotonic()
                if now + predicted * (fmean(paces) if paces else 1.0) <= deadline:
                    receiver, process = start(run, 1 if run.alone else side_by_side)
                    children[receiver] = _Child(run, process, now, predicted)
                    break
            else:
                if not children:
                    return _conclude(wanted(), failed, seconds)
                remaining = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
                ended = wait(list(children), remaining)
                if not ended:
                    print(f"{seconds:.0f} s are over; given up: {'; '.join(str(c.run) for c in children.values())}")
                    return False
                for receiver in ended:
                    child = children.pop(receiver)
                    if _keep(child, receiver):
                        paces.append((time.monotonic() - child.begun) / child.predicted)
                    else:
                        failed.append(child.run)
    finally:
        for child in children.values():
            child.process.kill()
            child.process.join()


def _startable(
    wanted: Iterable[Wanted], failed: Sequence[Wanted], children: Sequence[_Child], side_by_side: int
) -> Iterator[Wanted]:
    """The runs that may begin beside those under way."""
    if len(children) >= side_by_side or any(child.run.alone for child in children):
        return
    for run in wanted:
        if run.among(failed) or run.among([child.run for child in children]):
            continue
        if run.alone and children:
            return
        yield run


def start(run: Wanted, side_by_side: int) -> tuple[Connection, BaseProcess]:
    """Begin a run in a process of its own, which sends its row, or a traceback as text."""
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    arguments = (sender, run.config, run.data, run.afterwards, run.labels | {"side_by_side": side_by_side})
    process = _PROCESSES.Process(target=_train_while_wanted, args=arguments)
    process.start()
    sender.close()
    return receiver, process


def _train_while_wanted(*arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    train_and_send(*arguments)


def _end_with_parent() -> None:
    """However the parent ends: nobody would keep the row."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def train_and_send(
    sender: Connection,
    config: TrainConfig,
    data: Path,
    afterwards: Afterwards | None,
    labels: dict[str, Any],
) -> None:
    """What the process does."""
    try:
        sender.send(train_and_measure(config, data, afterwards=afterwards) | labels)
    except Exception:
        sender.send(traceback.format_exc())
    sender.close()


def _keep(child: _Child, receiver: Connection) -> bool:
    """Add a finished run to the results and say so; say also what went wrong."""
    try:
        row = receiver.recv()
    except EOFError:
        row = "its process was killed"
    receiver.close()
    child.process.join()
    if isinstance(row, str):
        print(f"{child.run} failed: {row}", flush=True)
        return False
    child.run.results.add(row)
    print(
        f"{child.run}: validation loss {row['validation_loss']:.4f} after {row['tokens'] / 1e6:.1f}M tokens, "
        f"{row['seconds_per_step'] * 1e3:.1f} ms a step; {time.monotonic() - child.begun:.0f} s, "
        f"{child.predicted:.0f} predicted",
        flush=True,
    )
    return True


def _conclude(wanted: Iterable[Wanted], failed: Sequence[Wanted], seconds: float) -> bool:
    left = next((run for run in wanted if not run.among(failed)), None)
    if left:
        print(f"no other run ends within {seconds:.0f} s; the same command goes on with {left}")
    elif failed:
        print(f"all there but for what failed: {'; '.join(map(str, failed))}")
    else:
        print("complete")
    return not left and not failed
