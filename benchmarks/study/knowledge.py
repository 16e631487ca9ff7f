"""How many facts does a model store? Synthetic biographies, dense against experts and the memory layers.

All rivals have equal compute, and each its best learning rate of those that are tried with the fewest people. Every
person is told of a hundred times, whatever their number, and in as many steps: twice as many people are told of in
twice as large batches. --data is a folder for the corpora, made at first.

python -m benchmarks.study.knowledge --data data/people
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.study.biographies import people, write_corpus
from benchmarks.study.command import parser_of
from benchmarks.study.learning_rates import losses_by_rate
from benchmarks.study.recall import quiz
from benchmarks.study.results import Results
from benchmarks.study.schedule import Wanted, by_model, make
from ultramem import recipes
from ultramem.data.prepare import prepare
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig

EXPERIMENT = "knowledge"
EXPOSURES = 100
NUMBERS_OF_PEOPLE = (1000, 4000, 16000)
VOCABULARY = 2048
LEARNING_RATES = (8e-3, 16e-3, 32e-3)

# A trunk so small that a few thousand people fill it; FLOPs a token agree within 5 percent.
TRUNK = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
RIVALS = {
    "dense": {"intermediate_size": 208},
    "moe": {"intermediate_size": 208, "moe_intermediate_size": 104, "num_experts": 16},
    "pkm": {
        "intermediate_size": 168,
        "memory_units": ["1:1"],
        "memory_num_keys": 88,
        "memory_key_size": 16,
        "memory_value_size": 64,
    },
    "ultramem": {
        "intermediate_size": 112,
        "memory_units": ["1:2"],
        "memory_num_keys": 88,
        "memory_key_size": 32,
        "memory_value_size": 64,
    },
    "ultramem-simple": {
        "intermediate_size": 104,
        "memory_units": ["1:1", "2:2"],
        "memory_num_keys": 62,
        "memory_key_size": 32,
        "memory_value_size": 64,
    },
    "memory-plus": {
        "intermediate_size": 96,
        "memory_units": ["1:1", "2:2"],
        "memory_num_keys": 88,
        "memory_key_size": 16,
        "memory_value_size": 64,
    },
}
SEQUENCE_LENGTH = 128
STEPS = 1300
TOKENS_A_BIOGRAPHY = 52  # of the vocabulary below
STEP_MILLISECONDS = 8.0  # as if alone, a guess: only to tell whether a run ends in time


def rival(name: str, num_people: int, seed: int = 0, learning_rate: float = LEARNING_RATES[0]) -> TrainConfig:
    """One model, that learns from a hundred biographies of each."""
    base = recipes.get(f"cpu-{name}")
    return replace(
        with_model(base, **TRUNK, **RIVALS[name]),
        name=f"{name}-{num_people}-people",
        seed=seed,
        steps=STEPS,
        batch_size=max(1, num_people * EXPOSURES * TOKENS_A_BIOGRAPHY // (STEPS * SEQUENCE_LENGTH)),
        sequence_length=SEQUENCE_LENGTH,
        optimizer=replace(base.optimizer, learning_rate=learning_rate, warmup_steps=max(1, STEPS // 20)),
        evaluate_every_steps=max(1, STEPS // 4),
    )


def prepare_people(folder: Path, numbers: Sequence[int]) -> None:
    """Tell of so many people and prepare what is told; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for num_people in numbers:
        text = folder / f"{num_people}.jsonl"
        if not text.exists():
            unfinished = text.with_suffix(".part")
            write_corpus(unfinished, people(num_people), EXPOSURES)
            unfinished.rename(text)
        prepare(
            text,
            prepared(folder, num_people),
            vocab_size=VOCABULARY,
            validation_fraction=0.002,
            console=Console(quiet=True),
        )


def prepared(folder: Path, num_people: int) -> Path:
    """Where the tokens of so many people are."""
    return folder / f"{num_people}-prepared"


def ask(model: UltraMemForCausalLM, num_people: int, data: Path) -> dict[str, Any]:
    """The quiz for a model that was told of so many people."""
    return quiz(model, people(num_people), data)


def runs(results: Results, numbers: Sequence[int], seeds: Sequence[int]) -> Iterator[tuple[int, TrainConfig]]:
    """How many people each run is told of: the fewest at every learning rate, then all at the best, if it is known."""
    fewest = min(numbers)
    for name in RIVALS:
        sweep = [rival(name, fewest, learning_rate=rate) for rate in LEARNING_RATES]
        yield from ((fewest, config) for config in sweep)
        losses = losses_by_rate(results.rows(), sweep[0].name)
        if set(LEARNING_RATES) <= set(losses):
            best = min(LEARNING_RATES, key=losses.__getitem__)
            yield from ((number, rival(name, number, seed, best)) for seed, number in product(seeds, numbers))


def lacking(
    results: Results, folder: Path, numbers: Sequence[int] = NUMBERS_OF_PEOPLE, seeds: Sequence[int] = (0,)
) -> list[list[Wanted]]:
    """Those runs that are not among the results, those of one model together."""
    return by_model(
        Wanted(
            results,
            config,
            data,
            config.steps * STEP_MILLISECONDS / 1e3,
            {},
            partial(ask, num_people=num_people, data=data),
        )
        for num_people, config in runs(results, numbers, seeds)
        if not results.has(config)
        for data in [prepared(folder, num_people)]
    )


def main(arguments: list[str] | None = None) -> None:
    """Make the runs that are not there yet."""
    parser = parser_of(__doc__)
    parser.add_argument("--people", type=int, nargs="+", default=[*NUMBERS_OF_PEOPLE], help="how many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each")
    given = parser.parse_args(arguments)
    prepare_people(given.data, given.people)
    results = Results(EXPERIMENT, given.out)
    make(
        lambda: lacking(results, given.data, given.people, given.seeds),
        side_by_side=given.side_by_side,
        seconds=given.seconds,
    )


if __name__ == "__main__":
    main()
