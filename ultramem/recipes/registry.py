"""How recipes are collected under their names, and how one is made of another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.train.config import TrainConfig
from ultramem.train.config_json import model_to_dict


@dataclass(frozen=True)
class Recipe:
    """A run that has a name."""

    description: str
    build: Callable[[], TrainConfig]


class Registry(dict[str, Recipe]):
    """Recipes by name, in the order in which they were added."""

    def add(self, name: str, description: str = "") -> Callable[[Callable[[], TrainConfig]], Callable[[], TrainConfig]]:
        """Make a decorator that keeps a function as the recipe `name`, described by its docstring if not here."""

        def keep(build: Callable[[], TrainConfig]) -> Callable[[], TrainConfig]:
            assert name not in self, f"two recipes are called {name}"
            self[name] = Recipe(description or (build.__doc__ or "").strip(), build)
            return build

        return keep


def with_model(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Copy a run with other model fields.

    Example:
        >>> with_model(recipes.get("dense-151m"), ffn="swiglu").model.ffn
        'swiglu'
    """
    return replace(config, model=UltraMemConfig(**(given_fields(config.model) | changes)))


def given_fields(model: UltraMemConfig) -> dict[str, Any]:
    """Return a model's fields without those that only follow from others, so that they follow again after a change."""
    follows = {
        "head_dim": model.hidden_size // model.num_attention_heads,
        "num_key_value_heads": model.num_attention_heads,
        "moe_intermediate_size": model.intermediate_size,
    }
    return {name: value for name, value in model_to_dict(model).items() if follows.get(name) != value}
