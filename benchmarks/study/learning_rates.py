"""Learning rates from short runs: the trunk's for each rival, then the tables' multiple and its horizon for UltraMem.

python -m benchmarks.study.learning_rates --data data/docs --scale gpu-25m
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.study.command import main
from benchmarks.study.results import Results
from benchmarks.study.scales import Scale
from ultramem.train.config import TrainConfig

EXPERIMENT = "learning_rates"
SHARE_OF_TOKENS = 2  # a sweep's run is half as long
TABLE_MULTIPLIERS = (1.0, 3.0)  # beside the recipe's own
SWEPT_FIRST = ("dense", "ultramem")
SWEPT_AFTERWARDS = ("moe", "pkm", "ultramem-v2", "memory-plus", "moe-fine")


def runs(scale: Scale, tokens: int, results: Results) -> Iterator[TrainConfig]:
    """Dense and UltraMem first, then UltraMem's tables at the best rate, then the other rivals."""
    tokens //= SHARE_OF_TOKENS
    for rival in SWEPT_FIRST:
        yield from trunk_rates(scale, rival, tokens)
    best = best_optimizer(results.rows(), f"{scale.family}-ultramem")
    ultramem = scale.recipe("ultramem")
    for start in TABLE_MULTIPLIERS:
        yield variant(scale, ultramem, tokens, learning_rate=best["learning_rate"], table_multiplier_start=start)
    steps = scale.fit(ultramem, tokens).steps
    yield variant(scale, ultramem, tokens, learning_rate=best["learning_rate"], table_horizon_steps=steps // 3)
    for rival in SWEPT_AFTERWARDS:
        yield from trunk_rates(scale, rival, tokens)


def trunk_rates(scale: Scale, rival: str, tokens: int) -> Iterator[TrainConfig]:
    """One rival at each of the scale's learning rates."""
    for rate in scale.learning_rates:
        yield variant(scale, scale.recipe(rival), tokens, learning_rate=rate)


def variant(scale: Scale, config: TrainConfig, tokens: int, **optimizer: Any) -> TrainConfig:
    """A short run of a recipe with other optimizer settings."""
    return scale.fit(replace(config, optimizer=replace(config.optimizer, **optimizer)), tokens)


def best_optimizer(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The optimizer settings of a recipe's best run; there has to be one."""
    return _best(rows, name)["optimizer"]


def tuned(config: TrainConfig, rows: list[dict[str, Any]], scale: Scale) -> TrainConfig:
    """Give a fitted run the rates of the sweep's best one: its own, else those of the model nearest to it.

    What has no memory takes the dense model's learning rate, what has one UltraMem's, with the tables' multiple and its
    horizon as a share of the run. A run stays as it is where nothing was swept.
    """
    swept = {row["name"] for row in rows}
    nearest = f"{scale.family}-{'dense' if config.model.memory is None else 'ultramem'}"
    name = config.name if config.name in swept else nearest
    if name not in swept:
        return config
    best = _best(rows, name)
    horizon = best["optimizer"]["table_horizon_steps"]
    return replace(
        config,
        optimizer=replace(
            config.optimizer,
            learning_rate=best["optimizer"]["learning_rate"],
            table_multiplier_start=best["optimizer"]["table_multiplier_start"],
            table_horizon_steps=None if horizon is None else horizon * config.steps // best["steps"],
        ),
    )


def _best(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The settings of a recipe's run with the lowest validation loss."""
    return min((row for row in rows if row["name"] == name), key=lambda row: row["validation_loss"])["settings"]


if __name__ == "__main__":
    main(EXPERIMENT, __doc__, runs)
