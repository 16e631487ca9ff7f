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


def every_block_ultramem_v2(trunk: TrainConfig, num_keys: int, width: int) -> TrainConfig:
    """Give every block of a trunk an UltraMemV2 layer: a head of 32 slots; keys, pre-values, values of one width."""
    return with_model(
        trunk,
        memory="ultramem_v2",
        memory_units=[f"{block}:{block}" for block in range(1, trunk.model.num_hidden_layers + 1)],
        memory_num_keys=num_keys,
        memory_key_size=width,
        memory_value_size=width,
        memory_pre_value_size=width,
        memory_top_k=32,
        memory_num_heads=1,
        memory_expansion=1,
        memory_query_conv_size=0,
    )


def given_fields(model: UltraMemConfig) -> dict[str, Any]:
    """Return a model's fields without those that only follow from others, so that they follow again after a change."""
    follows = {
        "head_dim": model.hidden_size // model.num_attention_heads,
        "num_key_value_heads": model.num_attention_heads,
        "moe_intermediate_size": model.intermediate_size,
    }
    return {name: value for name, value in model_to_dict(model).items() if follows.get(name) != value}
