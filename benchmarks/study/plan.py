"""All experiments in the order of their worth, as far as the time reaches; the same command goes on where it was.

Everything is at 25M active parameters, where larger dense models are better and a run takes minutes; the ladder in
larger batches and shorter runs, with which it was begun. Equal compute is at 15M too. Models are trained side by side,
and the first of each at equal compute is asked the --questions, if given; at last, as far as time is left, the steps of
models that have runs are timed alone. --list only tells what is lacking, and how long it probably takes.

python -m benchmarks.study.plan --data data/docs --people data/people --side-by-side 5 --seconds 560
"""

import math
import multiprocessing
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from types import ModuleType

from benchmarks.study import (
    command,
    dense_equivalent,
    equal_compute,
    knowledge,
    ladder,
    learning_rates,
    shape,
    step_time,
    table_size,
)
from benchmarks.study.results import Results
from benchmarks.study.scales import SCALES, START_SECONDS
from benchmarks.study.schedule import Afterwards, Wanted, make
from ultramem.train.config import TrainConfig

_PROCESSES = multiprocessing.get_context("spawn")

SCALE = "gpu-25m-small-batch"
SMALLER_SCALE = "gpu-15m-small-batch"
LADDERS_SCALE = "gpu-25m"


def wanted(given: Namespace, people_are_told_of: Callable[[], bool]) -> Iterator[list[Wanted]]:
    """What is lacking and can begin: a model's runs when its rates are swept, knowledge when biographies are there."""
    yield from lacking(given, ladder, LADDERS_SCALE)
    yield from lacking(given, ladder, LADDERS_SCALE, seeds=(1,), alternatives=False)
    rates = lacking(given, learning_rates)
    yield from rates
    swept_now = {run.config.name for runs in rates for run in runs}
    yield from after_the_rates(
        given,
        people_are_told_of,
        [name for name in equal_compute.RIVALS if SCALES[SCALE].recipe(name).name not in swept_now],
    )


def after_the_rates(
    given: Namespace, people_are_told_of: Callable[[], bool], rivals: Sequence[str]
) -> Iterator[list[Wanted]]:
    """What is lacking of the models whose rates are known: every experiment once, then with other seeds."""
    yield from lacking(given, equal_compute, afterwards=given.quiz, rivals=rivals)
    sizes = [sizes for rival, sizes in (("dense", dense_equivalent), ("ultramem", table_size)) if rival in rivals]
    for experiment in sizes:
        yield from lacking(given, experiment)
    if people_are_told_of():
        yield from knowledge.lacking(Results(knowledge.EXPERIMENT, given.out), given.people)
    yield from lacking(given, equal_compute, seeds=equal_compute.SEEDS, rivals=rivals)
    if "ultramem" in rivals:
        yield from lacking(given, shape)
    smaller = lacking(given, learning_rates, SMALLER_SCALE)
    yield from smaller or lacking(given, equal_compute, SMALLER_SCALE, seeds=equal_compute.SEEDS)
    for experiment in sizes:
        yield from lacking(given, experiment, seeds=(1, 2))
    yield from lacking(given, ladder, LADDERS_SCALE, seeds=(1,))


def lacking(
    given: Namespace,
    experiment: ModuleType,
    scale: str = SCALE,
    *,
    seeds: tuple[int, ...] = (0,),
    afterwards: Afterwards | None = None,
    **choices: object,
) -> list[list[Wanted]]:
    """The runs of one experiment that are not among the results; `choices` are what its own `runs` takes besides."""
    results = Results(experiment.EXPERIMENT, given.out)
    runs = partial(experiment.runs, **choices)
    return command.lacking(results, runs, scale, given.data, seeds=seeds, afterwards=afterwards)


def untimed(given: Namespace) -> list[TrainConfig]:
    """Models with a run among the results that lack the time of a step."""
    scale, experiments = SCALES[SCALE], (equal_compute, dense_equivalent, table_size)
    rows = [row for module in experiments for row in Results(module.EXPERIMENT, given.out).rows()]
    kept = {row["name"] for row in rows if row["scale"] == SCALE}
    missing = Results(step_time.EXPERIMENT, given.out).missing([*step_time.rivals(scale), *step_time.sizes(scale)])
    return [config for config in missing if config.name in kept]


def time_steps(given: Namespace, seconds: float | None) -> None:
    """Time the steps of the untimed models, while nothing is trained, as far as the time reaches."""
    if (seconds is None or seconds > 0) and (configs := untimed(given)):
        results = Results(step_time.EXPERIMENT, given.out)
        timer = _PROCESSES.Process(target=step_time.measure_all, args=(SCALE, configs, given.data, results))
        timer.start()
        timer.join(seconds)
        timer.kill()


def listing(together: Iterable[Sequence[Wanted]]) -> str:
    """What is lacking, in its order: runs, tokens, and the seconds that they would take one after another."""
    lines, total = [], 0.0
    once: list[Wanted] = []
    first: list[Wanted] = []
    for runs in together:
        new = [run for run in runs if not run.among(once)]
        once.extend(new)
        first.extend(new[:1])
    for experiment, group in groupby(once, key=lambda run: run.results.path.stem):
        several = [*group]
        tokens = sum(run.config.steps * run.config.tokens_per_step for run in several)
        seconds = sum(run.seconds + (START_SECONDS if run.among(first) else 0.0) for run in several)
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
        everything = wanted(given, lambda: True), after_the_rates(given, lambda: True, equal_compute.RIVALS)
        print(listing(chain(*everything)))
        return
    end = time.monotonic() + given.seconds
    # Biographies are told and tokenized while other runs have the GPU.
    writer = _PROCESSES.Process(
        target=knowledge.prepare_people, args=(given.people, knowledge.NUMBERS_OF_PEOPLE), daemon=True
    )
    writer.start()
    seconds = given.seconds - step_time.SECONDS_A_MODEL * len(untimed(given))
    make(partial(wanted, given, lambda: not writer.is_alive()), side_by_side=given.side_by_side, seconds=seconds)
    time_steps(given, None if given.seconds == math.inf else end - time.monotonic())


if __name__ == "__main__":
    main()
