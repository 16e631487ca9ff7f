"""UltraMem's shape: how many rows it reads, how wide they are, expansion, heads, layers and their skips.

All variants have the recipe's learning rates, and as many parameters in tables and in matrices and FLOPs, within a
percent on a GPU's scales; on the CPU's two of them are models that others are already, and are left out. Runs are as
long as those of `learning_rates`.

python -m benchmarks.study.shape --data data/docs --scale gpu-15m-small-batch
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from benchmarks.study.command import main
from benchmarks.study.equal_compute import with_as_many_matrices
from benchmarks.study.learning_rates import EXPERIMENT as SWEEP
from benchmarks.study.learning_rates import SHARE_OF_TOKENS, tuned
from benchmarks.study.results import Results
from benchmarks.study.scales import Scale
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig

EXPERIMENT = "shape"


def _twice_as_wide(model: UltraMemConfig) -> dict[str, int]:
    """And half as many rows."""
    return {
        "memory_value_size": 2 * model.memory_value_size,
        "memory_num_keys": round(model.memory_num_keys / 2**0.5),
    }


def _with_units(model: UltraMemConfig, units: Sequence[str]) -> dict[str, object]:
    """Other layers with as many rows in all."""
    num_keys = round(model.memory_num_keys * (len(model.memory_units) / len(units)) ** 0.5)
    return {"memory_units": [*units], "memory_num_keys": num_keys}


def _without_skips(model: UltraMemConfig) -> list[str]:
    """Read and added by the block in the middle of each skip."""
    middles = [(read + add) // 2 + 1 for read, add in model.memory_unit_blocks]
    return [f"{block}:{block}" for block in middles]


def _one_block_long(model: UltraMemConfig) -> list[str]:
    return [f"{block}:{block + 1}" for block in range(1, model.num_hidden_layers, 2)]


VARIANTS: dict[str, Callable[[UltraMemConfig], dict[str, object]]] = {
    "twice-the-slots": lambda model: {"memory_top_k": 2 * model.memory_top_k},
    "one-head-twice-the-slots": lambda model: {"memory_num_heads": 1, "memory_top_k": 2 * model.memory_top_k},
    "no-expansion": lambda model: {"memory_expansion": 1},
    "rows-twice-as-wide": _twice_as_wide,
    "rows-twice-as-wide-no-expansion": lambda model: {**_twice_as_wide(model), "memory_expansion": 1},
    "keys-twice-as-wide": lambda model: {"memory_key_size": 2 * model.memory_key_size},
    "no-skips": lambda model: {"memory_units": _without_skips(model)},
    "no-expansion-no-skips": lambda model: {"memory_expansion": 1, "memory_units": _without_skips(model)},
    "one-layer": lambda model: _with_units(model, model.memory_units[1:2]),
    "a-layer-every-other-block": lambda model: _with_units(model, _one_block_long(model)),
}


def runs(scale: Scale, tokens: int, results: Results, seeds: Sequence[int]) -> Iterator[TrainConfig]:
    """The recipe, then what differs in one way or two."""
    rates = results.of(SWEEP)
    for seed in seeds:
        ultramem = tuned(scale.fit(scale.recipe("ultramem"), tokens // SHARE_OF_TOKENS, seed=seed), rates, scale)
        yield ultramem
        models = [ultramem.model]
        for name, changes in VARIANTS.items():
            varied = with_as_many_matrices(with_model(ultramem, **changes(ultramem.model)), ultramem)
            if varied.model not in models:
                models.append(varied.model)
                yield replace(varied, name=f"{ultramem.name}-{name}")


if __name__ == "__main__":
    main(EXPERIMENT, __doc__, runs)
