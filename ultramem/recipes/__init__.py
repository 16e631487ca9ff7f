"""Named runs: every recipe is a function that returns a TrainConfig.

`published` and `open_models` hold the sizes of the papers, `ladder` the steps from product keys to UltraMem, `laptop`
and `one_gpu` families of equal compute.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType

from ultramem.recipes import ladder, laptop, one_gpu, open_models, published
from ultramem.recipes.registry import Recipe
from ultramem.train.config import TrainConfig

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {**laptop.RECIPES, **one_gpu.RECIPES, **published.RECIPES, **open_models.RECIPES, **ladder.RECIPES}
)


def get(name: str) -> TrainConfig:
    """Build the recipe called `name`.

    Raises:
        ValueError: there is none; the message has the nearest names.

    Example:
        >>> get("ultramem-151m-x10").model.memory_num_keys
        1000
    """
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else "`ultramem info` lists all"
        raise ValueError(f"recipe {name!r} does not exist: {hint}")
    return replace(RECIPES[name].build(), name=name)


def matching(pattern: str) -> list[str]:
    """Names that fit a shell's pattern, such as "ladder-cpu-*"; a name without `*`, `?` and `[` stands for itself.

    Raises:
        ValueError: no name fits.

    Example:
        >>> matching("dense-1*")
        ['dense-151m', 'dense-1.6b']
    """
    if not set(pattern) & set("*?["):
        return [pattern]
    found = fnmatch.filter(RECIPES, pattern)
    if not found:
        raise ValueError(f"recipe {pattern!r} fits no name: `ultramem info` lists all")
    return found


def names() -> list[str]:
    """All recipes' names, families together."""
    return list(RECIPES)


def describe(name: str) -> str:
    """One sentence on what the recipe is."""
    return RECIPES[name].description
