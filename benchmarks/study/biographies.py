"""Made-up people whose facts are drawn evenly, so that what a model has learnt of them can be counted in bits.

As in "Physics of Language Models: Part 3.3" (Allen-Zhu and Li, arXiv 2404.05405): every person has a birth date, a
birth city, a university, a subject and an employer. A biography tells all five, in random order and in one of several
wordings each, always with the whole name.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import log2
from pathlib import Path

ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea")
CODAS = ("l", "n", "r", "s", "m", "nd")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


def _words(count: int, ending: str, seed: int) -> tuple[str, ...]:
    """Distinct made-up names of two syllables and an ending."""
    syllables = ["".join(parts) for parts in product(ONSETS, VOWELS)]
    closed = ["".join(parts) for parts in product(ONSETS, VOWELS, CODAS)]
    words = {f"{first}{second}{ending}".capitalize() for first, second in product(syllables, closed)}
    return tuple(random.Random(seed).sample(sorted(words), count))


@dataclass(frozen=True)
class Attribute:
    """What is told of a person: its possible values, all alike likely, and wordings that end with the value."""

    values: tuple[str, ...]
    wordings: tuple[str, ...]

    @property
    def bits(self) -> float:
        """What it takes to know one value."""
        return log2(len(self.values))


ATTRIBUTES = {
    "birth date": Attribute(
        tuple(f"{month} {day}, {year}" for month, day, year in product(MONTHS, range(1, 29), range(1800, 2000))),
        ("{name} was born on {value}.", "The birthday of {name} is {value}.", "{name} came into the world on {value}."),
    ),
    "birth city": Attribute(
        _words(200, "ville", seed=1),
        ("{name} was born in {value}.", "The birthplace of {name} is {value}.", "{name} grew up in {value}."),
    ),
    "university": Attribute(
        _words(300, "ford", seed=2),
        ("{name} studied at {value}.", "The university of {name} was {value}.", "{name} took a degree from {value}."),
    ),
    "subject": Attribute(
        _words(100, "ology", seed=3),
        ("{name} read {value}.", "The subject of {name} was {value}.", "{name} wrote a thesis on {value}."),
    ),
    "employer": Attribute(
        _words(263, "corp", seed=4),
        ("{name} worked for {value}.", "The employer of {name} is {value}.", "{name} has a post at {value}."),
    ),
}
BITS_A_PERSON = sum(attribute.bits for attribute in ATTRIBUTES.values())

FIRST_NAMES, LAST_NAMES = _words(400, "a", seed=5), _words(1000, "son", seed=6)


@dataclass(frozen=True)
class Person:
    """A name that nobody else has, and a value for every attribute."""

    name: str
    facts: dict[str, str]


def people(count: int, seed: int = 0) -> list[Person]:
    """Draw so many people; the first of them are the same whatever the count.

    Raises:
        ValueError: there are not so many names.
    """
    num_names = len(FIRST_NAMES) * len(LAST_NAMES)
    if count > num_names:
        raise ValueError(f"count is {count}: there are {num_names} names")
    names = random.Random(f"names {seed}").sample(range(num_names), num_names)[:count]
    facts = random.Random(f"facts {seed}")
    return [
        Person(
            name=f"{FIRST_NAMES[number // len(LAST_NAMES)]} {LAST_NAMES[number % len(LAST_NAMES)]}",
            facts={name: facts.choice(attribute.values) for name, attribute in ATTRIBUTES.items()},
        )
        for number in names
    ]


def biographies(persons: list[Person], exposures: int, seed: int = 0) -> Iterator[str]:
    """Tell of everybody `exposures` times, each time in another order and other words."""
    chance = random.Random(f"biographies {seed}")
    for _ in range(exposures):
        for person in persons:
            sentences = [
                chance.choice(ATTRIBUTES[name].wordings).format(name=person.name, value=value)
                for name, value in person.facts.items()
            ]
            chance.shuffle(sentences)
            yield " ".join(sentences)


def write_corpus(path: Path, persons: list[Person], exposures: int, seed: int = 0) -> None:
    """Write biographies as JSON lines, as `ultramem prepare` reads them."""
    with path.open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in biographies(persons, exposures, seed))
