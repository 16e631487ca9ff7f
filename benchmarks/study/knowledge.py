"""How many facts does a model store? Synthetic biographies, dense against experts, product keys and UltraMem.

All rivals have equal compute; every person is told of a hundred times, whatever their number. --data is a folder for
the corpora, made on the way.

python -m benchmarks.study.knowledge --data data/people
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.study.biographies import Person, people, write_corpus
from benchmarks.study.command import keep, parser_of, pending
from benchmarks.study.recall import quiz
from benchmarks.study.results import Results
from benchmarks.study.run import train_and_measure
from ultramem import recipes
from ultramem.data.prepare import prepare
from ultramem.data.tokens import TokenDataset
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig

EXPERIMENT = "knowledge"
EXPOSURES = 100
NUMBERS_OF_PEOPLE = (500, 2000, 8000)
VOCABULARY = 2048

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
}
SEQUENCE_LENGTH, BATCH_SIZE = 128, 64


def rival(name: str, num_people: int, steps: int) -> TrainConfig:
    """One model, to be trained for so many steps."""
    base = recipes.get(f"cpu-{name}")
    return replace(
        with_model(base, **TRUNK, **RIVALS[name]),
        name=f"{name}-{num_people}-people",
        steps=steps,
        batch_size=BATCH_SIZE,
        sequence_length=SEQUENCE_LENGTH,
        optimizer=replace(base.optimizer, warmup_steps=max(1, steps // 20)),
        evaluate_every_steps=max(1, steps // 4),
    )


def corpus(folder: Path, persons: list[Person]) -> Path:
    """Prepare the biographies of some people; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"{len(persons)}.jsonl"
    if not text.exists():
        write_corpus(text, persons, EXPOSURES)
    data = folder / f"{len(persons)}-prepared"
    prepare(text, data, vocab_size=VOCABULARY, validation_fraction=0.002, console=Console(quiet=True))
    return data


def main(arguments: list[str] | None = None) -> None:
    """Make the runs that are not there yet, fewest people first."""
    given = parser_of(__doc__).parse_args(arguments)
    results = Results(EXPERIMENT, given.out)
    for num_people in NUMBERS_OF_PEOPLE:
        persons = people(num_people)
        data = corpus(given.data, persons)
        steps = max(1, TokenDataset.open(data).num_tokens // (BATCH_SIZE * SEQUENCE_LENGTH))
        rivals = (rival(name, num_people, steps) for name in RIVALS)
        for config in pending(results, rivals, given.seconds / len(NUMBERS_OF_PEOPLE)):
            keep(results, train_and_measure(config, data, afterwards=partial(quiz, persons=persons, data=data)))


if __name__ == "__main__":
    main()
