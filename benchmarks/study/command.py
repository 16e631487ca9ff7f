"""What the experiments' commands have in common: their flags, and which of their runs are lacking."""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.study.questions import ask
from benchmarks.study.results import KEPT, Results
from benchmarks.study.scales import SCALES, Scale
from benchmarks.study.schedule import Afterwards, Wanted, by_model, make
from ultramem.train.config import TrainConfig

QUESTIONS_OF_A_SET = 1000

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
    add_questions(parser)
    parser.add_argument("--tokens", type=int, help="that each model learns from; the scale's if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*seeds], help="a run for each")
    given = parser.parse_args(arguments)
    results = Results(experiment, given.out)
    questions = quiz_of(parser, given)
    make(
        lambda: lacking(
            results, runs, given.scale, given.data, tokens=given.tokens, seeds=given.seeds, afterwards=questions
        ),
        side_by_side=given.side_by_side,
        seconds=given.seconds,
    )


def parser_of(description: str) -> argparse.ArgumentParser:
    """Make a parser with the flags of every experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by `ultramem prepare`")
    parser.add_argument("--out", type=Path, default=KEPT, help="folder of the results; begins with what is kept")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end within this time")
    parser.add_argument(
        "--side-by-side", type=int, default=1, help="how many models at a time on each GPU, or on the CPU"
    )
    return parser


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Let a command take question sets."""
    parser.add_argument("--questions", type=Path, help="folder of question sets for lm-eval to ask the trained models")


def quiz_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Afterwards | None:
    """What asks them, if they were given; an error before any model is trained if they cannot be asked."""
    if given.questions is None:
        return None
    if not [*given.questions.glob("*.jsonl")]:
        parser.error(f"--questions {given.questions} holds no .jsonl")
    if find_spec("lm_eval") is None:
        parser.error("--questions needs lm-eval: pip install 'ultramem-pytorch[eval]'")
    return partial(ask, data=given.data, sets=given.questions, limit=QUESTIONS_OF_A_SET)


def lacking(
    results: Results,
    runs: Runs,
    scale_name: str,
    data: Path,
    *,
    tokens: int | None = None,
    seeds: Sequence[int] = (0,),
    afterwards: Afterwards | None = None,
) -> list[list[Wanted]]:
    """Those runs of an experiment that are not among its results, those of one model together."""
    scale = SCALES[scale_name]
    return by_model(
        Wanted(results, config, data, scale.seconds(config), {"scale": scale_name}, afterwards)
        for config in results.missing(runs(scale, tokens or scale.tokens, results, seeds))
    )
