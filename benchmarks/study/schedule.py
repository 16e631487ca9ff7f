"""Makes runs, some side by side on each GPU, each model in a process of its own, until all are there or time is up."""

import math
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

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
        seconds: that it probably takes on its own, in a process that has begun.
        labels: what its row says besides.
        afterwards: measures the trained model once more.
    """

    results: Results
    config: TrainConfig
    data: Path
    seconds: float
    labels: dict[str, Any]
    afterwards: Afterwards | None = None

    def among(self, others: Iterable["Wanted"]) -> bool:
        """Whether it is one of others, asked for again."""
        return any(self.results.path == other.results.path and self.config == other.config for other in others)

    def __str__(self) -> str:
        return f"{self.results.path.stem} {self.config.name}, seed {self.config.seed}"


def by_model(runs: Iterable[Wanted]) -> list[list[Wanted]]:
    """Put runs of one model together, in the order of their first: what is compiled for one serves all."""
    together: list[list[Wanted]] = []
    for run in runs:
        for others in together:
            if _same_model(run, others[0]):
                others.append(run)
                break
        else:
            together.append([run])
    return together


def _same_model(run: Wanted, other: Wanted) -> bool:
    """Batches of another size would be compiled anew."""
    return (run.config.model, run.config.batch_size, run.config.sequence_length) == (
        other.config.model,
        other.config.batch_size,
        other.config.sequence_length,
    )


@dataclass
class _Child:
    """A process and its GPU; the first of `runs` is under way, and since when it is."""

    process: BaseProcess
    gpu: str | None
    runs: list[Wanted]
    begun: float
    predicted: float


def visible_gpus() -> list[str]:
    """The GPUs that may be used and are there, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()  # obeys that variable
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if named is None else map(str.strip, named.split(","))
    return [*names][:count]


def make(wanted: Callable[[], Iterable[Sequence[Wanted]]], *, side_by_side: int = 1, seconds: float = math.inf) -> bool:
    """Make runs, and keep each as soon as it has ended.

    A run begins only if it should end in time, as far as those before it can tell. What has not ended when the time
    is over is given up: nothing of it is kept, and the next call makes it anew. After a failure its model is left out.

    Args:
        wanted: asked again before every process: the runs that are lacking, in the order of their worth, those together
            that one process is to make one after another. More may be wanted after a run has ended, where that
            decides the settings of others.
        side_by_side: how many processes at a time on each GPU, or on the CPU where there is none.
        seconds: after which everything has ended.

    Returns:
        Whether nothing is wanted any more.
    """
    deadline = time.monotonic() + seconds
    gpus = visible_gpus() or [None]
    children: dict[Connection, _Child] = {}
    failed: list[Wanted] = []
    paces: list[float] = []
    try:
        while True:
            if len(children) < side_by_side * len(gpus):
                spared = (deadline - time.monotonic()) / (fmean(paces) if paces else 1.0)
                busy = [run for child in children.values() for run in child.runs]
                if runs := _next(wanted(), failed, busy, side_by_side, spared):
                    in_use = [child.gpu for child in children.values()]
                    gpu = min(gpus, key=in_use.count)
                    receiver, process = start(runs, side_by_side * len(gpus), gpu)
                    predicted = START_SECONDS + side_by_side * runs[0].seconds
                    children[receiver] = _Child(process, gpu, [*runs], time.monotonic(), predicted)
                    continue
            if not children:
                return _conclude(wanted(), failed, seconds)
            heard = wait(list(children), None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
            if not heard:
                given_up = "; ".join(str(run) for child in children.values() for run in child.runs)
                print(f"{seconds:.0f} s are over; given up: {given_up}")
                return False
            for receiver in heard:
                child = children[receiver]
                row = _receive(receiver)
                if isinstance(row, dict):
                    paces.append((time.monotonic() - child.begun) / child.predicted)
                    _keep(row, child)
                    del child.runs[0]
                else:
                    print(f"{child.runs[0]} failed: {row}", flush=True)
                    failed.append(child.runs[0])
                    child.runs.clear()
                if child.runs:
                    child.begun, child.predicted = time.monotonic(), side_by_side * child.runs[0].seconds
                else:
                    receiver.close()
                    child.process.join()
                    del children[receiver]
    finally:
        for child in children.values():
            child.process.kill()
            child.process.join()


def _next(
    wanted: Iterable[Sequence[Wanted]],
    failed: Sequence[Wanted],
    busy: Sequence[Wanted],
    side_by_side: int,
    seconds: float,
) -> list[Wanted]:
    """What a process may begin with: of the first runs of one model as many as end in so many seconds."""
    for together in wanted:
        runs: list[Wanted] = []
        left = seconds - START_SECONDS
        for run in together:
            if run.among(busy) or any(_same_model(run, other) for other in failed):
                continue
            left -= side_by_side * run.seconds
            if left >= 0:
                runs.append(run)
        if runs:
            return runs
    return []


def start(runs: Sequence[Wanted], side_by_side: int, gpu: str | None) -> tuple[Connection, BaseProcess]:
    """Begin runs in a process of their own, which sends their rows one by one, or a traceback as text.

    Args:
        runs: one after another.
        side_by_side: how many processes the machine has in all: a row says so.
        gpu: that alone they see; none leaves them what this process sees.
    """
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_train_while_wanted, args=(sender, runs, side_by_side, gpu))
    process.start()
    sender.close()
    return receiver, process


def _train_while_wanted(sender: Connection, runs: Sequence[Wanted], side_by_side: int, gpu: str | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA looks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    train_and_send(sender, runs, side_by_side)


def _end_with_parent() -> None:
    """However the parent ends: nobody would keep the row."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def train_and_send(sender: Connection, runs: Sequence[Wanted], side_by_side: int) -> None:
    """What the process does; a failure ends it, for it may have left the GPU unusable."""
    try:
        for run in runs:
            row = train_and_measure(run.config, run.data, afterwards=run.afterwards)
            sender.send(row | run.labels | {"side_by_side": side_by_side})
    except Exception:
        sender.send(traceback.format_exc())
    sender.close()


def _receive(receiver: Connection) -> dict[str, Any] | str:
    """A row, or what went wrong."""
    try:
        return receiver.recv()
    except EOFError:
        return "its process was killed"


def _keep(row: dict[str, Any], child: _Child) -> None:
    """Add a finished run to the results and say so."""
    child.runs[0].results.add(row)
    print(
        f"{child.runs[0]}: validation loss {row['validation_loss']:.4f} after {row['tokens'] / 1e6:.1f}M tokens, "
        f"{row['seconds_per_step'] * 1e3:.1f} ms a step; {time.monotonic() - child.begun:.0f} s, "
        f"{child.predicted:.0f} predicted",
        flush=True,
    )


def _conclude(wanted: Iterable[Sequence[Wanted]], failed: Sequence[Wanted], seconds: float) -> bool:
    left = [run for together in wanted for run in together if not any(_same_model(run, other) for other in failed)]
    if left:
        print(f"no other run ends within {seconds:.0f} s; the same command goes on with {left[0]}")
    elif failed:
        print(f"all there but for the models that failed: {'; '.join(map(str, failed))}")
    else:
        print("complete")
    return not left and not failed
