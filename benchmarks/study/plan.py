"""All experiments in the order of their worth, as far as the time reaches; the same command goes on where it was.

The ladder goes on at 25M active parameters, where it was begun; everything else is at 15M, where a run sees most of an
epoch in seconds. Four rivals have the machine to themselves with their first seed, so that their times are their own;
all other runs are made side by side, and those of equal compute are asked the --questions, if given. --list only tells
what is lacking, and how long it probably takes.

python -m benchmarks.study.plan --data data/docs --people data/people --side-by-side 5 --seconds 560
"""

import multiprocessing
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from types import ModuleType

from benchmarks.study import command, dense_equivalent, equal_compute, knowledge, ladder, learning_rates, table_size
from benchmarks.study.results import Results
from benchmarks.study.scales import START_SECONDS
from benchmarks.study.schedule import Afterwards, Wanted, make

SCALE = "gpu-15m"
LADDERS_SCALE = "gpu-25m"


def before_the_rates(given: Namespace) -> Iterator[Wanted]:
    """The ladder, whose learning rate is known: what is lacking, then a second seed of the rungs."""
    yield from lacking(given, ladder, LADDERS_SCALE)
    yield from lacking(given, ladder, LADDERS_SCALE, seeds=(1,), alternatives=False)


def after_the_rates(given: Namespace, people_are_told_of: Callable[[], object]) -> Iterator[Wanted]:
    """What takes its learning rates from the sweep; biographies are waited for."""
    yield from lacking(given, equal_compute, alone=True, rivals=equal_compute.RIVALS[:4])
    yield from lacking(given, equal_compute, seeds=equal_compute.SEEDS, afterwards=given.quiz)
    yield from lacking(given, table_size)
    yield from lacking(given, dense_equivalent)
    people_are_told_of()
    yield from knowledge.lacking(Results(knowledge.EXPERIMENT, given.out), given.people)
    yield from lacking(given, table_size, seeds=(1, 2))
    yield from lacking(given, dense_equivalent, seeds=(1, 2))
    yield from lacking(given, ladder, LADDERS_SCALE, seeds=(1,))


def wanted(given: Namespace, people_are_told_of: Callable[[], object]) -> Iterator[Wanted]:
    """What is lacking and can begin: nothing that takes its rates from a sweep that has not ended."""
    yield from before_the_rates(given)
    rates = [*lacking(given, learning_rates)]
    yield from rates or after_the_rates(given, people_are_told_of)


def lacking(
    given: Namespace,
    experiment: ModuleType,
    scale: str = SCALE,
    *,
    seeds: tuple[int, ...] = (0,),
    alone: bool = False,
    afterwards: Afterwards | None = None,
    **choices: object,
) -> Iterator[Wanted]:
    """The runs of one experiment that are not among the results; `choices` are what its own `runs` takes besides."""
    results = Results(experiment.EXPERIMENT, given.out)
    runs = partial(experiment.runs, **choices)
    return command.lacking(results, runs, scale, given.data, seeds=seeds, alone=alone, afterwards=afterwards)


def listing(runs: Iterable[Wanted]) -> str:
    """What is lacking, an experiment a line: runs, tokens, the seconds that they would take one after another."""
    lines, total = [], 0.0
    once: list[Wanted] = []
    once.extend(run for run in runs if not run.among(once))
    for experiment, group in groupby(once, key=lambda run: run.results.path.stem):
        several = [*group]
        tokens = sum(run.config.steps * run.config.tokens_per_step for run in several)
        seconds = sum(START_SECONDS + run.seconds for run in several)
        total += seconds
        lines.append(f"{experiment:18}{len(several):4} runs{tokens / 1e6:8.0f}M tokens{seconds:8.0f} s")
    return "\n".join([*lines, f"{total:.0f} s in all, one after another"])


def main(arguments: list[str] | None = None) -> None:
    """Make what is lacking."""
    parser = command.parser_of(__doc__)
    parser.add_argument("--people", type=Path, required=True, help="folder for the corpora of biographies")
    command.add_questions(parser)
    parser.add_argument("--list", action="store_true", help="only tell what is lacking")
    given = parser.parse_args(arguments)
    given.quiz = command.quiz_of(parser, given)
    if given.list:
        print(listing([*before_the_rates(given), *lacking(given, learning_rates), *after_the_rates(given, bool)]))
        return
    # Biographies are told and tokenized while other runs have the GPU.
    writer = multiprocessing.get_context("spawn").Process(
        target=knowledge.prepare_people, args=(given.people, knowledge.NUMBERS_OF_PEOPLE), daemon=True
    )
    writer.start()
    make(lambda: wanted(given, writer.join), side_by_side=given.side_by_side, seconds=given.seconds)


if __name__ == "__main__":
    main()
