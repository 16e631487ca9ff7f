"""What the experiments' commands have in common: their flags, and the loop over runs that can be stopped anywhere."""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.study.results import KEPT, Results
from benchmarks.study.run import train_and_measure
from benchmarks.study.scales import SCALES, Scale
from ultramem.train.config import TrainConfig

Runs = Callable[[Scale, int, Results], Iterator[TrainConfig]]


def main(experiment: str, description: str, runs: Runs, arguments: list[str] | None = None) -> None:
    """Make the runs of one experiment that are not there yet, each kept as soon as it has ended.

    Args:
        experiment: its name; the results are in `<out>/<experiment>.jsonl`.
        description: for --help.
        runs: given the scale, the tokens of a run and the results so far, yields runs in the order of their worth.
        arguments: of the command line, `sys.argv`'s if none.
    """
    parser = parser_of(description)
    parser.add_argument("--scale", choices=SCALES, default="gpu-25m", help="the family of recipes")
    parser.add_argument("--tokens", type=int, help="that each model learns from; the scale's if not given")
    given = parser.parse_args(arguments)
    scale = SCALES[given.scale]
    results = Results(experiment, given.out)
    for config in pending(results, runs(scale, given.tokens or scale.tokens, results), given.seconds):
        keep(results, train_and_measure(config, given.data) | {"scale": given.scale})


def parser_of(description: str) -> argparse.ArgumentParser:
    """Make a parser with the flags of every experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by `ultramem prepare`")
    parser.add_argument("--out", type=Path, default=KEPT, help="folder of the results; begins with what is kept")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no run after this time")
    return parser


def pending(results: Results, runs: Iterable[TrainConfig], seconds: float) -> Iterator[TrainConfig]:
    """Those runs that are not among the results yet, until the time is over."""
    begun = time.monotonic()
    for config in runs:
        if results.has(config):
            continue
        if time.monotonic() - begun > seconds:
            print(f"{seconds:.0f} s are over; the same command goes on with {config.name}, seed {config.seed}")
            return
        yield config
    print(f"complete: {results.path}")


def keep(results: Results, row: dict[str, Any]) -> None:
    """Add a finished run to the results, and say so."""
    results.add(row)
    print(
        f"{row['name']}, seed {row['seed']}: validation loss {row['validation_loss']:.4f} after "
        f"{row['tokens'] / 1e6:.1f}M tokens, {row['seconds_per_step'] * 1e3:.1f} ms a step, {row['seconds']:.0f} s",
        flush=True,
    )
