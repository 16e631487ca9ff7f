"""What the experiments' commands have in common: their flags, and which of their runs are lacking."""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.study.results import KEPT, Results
from benchmarks.study.scales import SCALES, Scale
from benchmarks.study.schedule import Wanted, make
from ultramem.train.config import TrainConfig

Runs = Callable[[Scale, int, Results, Sequence[int]], Iterable[TrainConfig]]


def main(
    experiment: str, description: str, runs: Runs, arguments: list[str] | None = None, *, seeds: Sequence[int] = (0,)
) -> None:
    """Make the runs of one experiment that are not there yet, each kept as soon as it has ended.

    Args:
        experiment: its name; the results are in `<out>/<experiment>.jsonl`.
        description: for --help.
        runs: given the scale, the tokens of a run, the results so far and the seeds, yields runs in the order of
            their worth, so far as the results decide their settings.
        arguments: of the command line, `sys.argv`'s if none.
        seeds: unless the command says otherwise.
    """
    parser = parser_of(description)
    parser.add_argument("--scale", choices=SCALES, required=True, help="the family of recipes")
    parser.add_argument("--tokens", type=int, help="that each model learns from; the scale's if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*seeds], help="a run for each")
    given = parser.parse_args(arguments)
    results = Results(experiment, given.out)
    make(
        lambda: lacking(results, runs, given.scale, given.data, tokens=given.tokens, seeds=given.seeds),
        side_by_side=given.side_by_side,
        seconds=given.seconds,
    )


def parser_of(description: str) -> argparse.ArgumentParser:
    """Make a parser with the flags of every experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by `ultramem prepare`")
    parser.add_argument("--out", type=Path, default=KEPT, help="folder of the results; begins with what is kept")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end within this time")
    parser.add_argument("--side-by-side", type=int, default=1, help="how many runs at a time, each in a process")
    return parser


def lacking(
    results: Results,
    runs: Runs,
    scale_name: str,
    data: Path,
    *,
    tokens: int | None = None,
    seeds: Sequence[int] = (0,),
    alone: bool = False,
) -> Iterator[Wanted]:
    """Those runs of an experiment that are not among its results."""
    scale = SCALES[scale_name]
    for config in results.missing(runs(scale, tokens or scale.tokens, results, seeds)):
        yield Wanted(results, config, data, scale.seconds(config), {"scale": scale_name}, alone=alone)
