"""Learning rates from short runs: the trunk's for each rival, then that of the tables for UltraMem and UltraMemV2.

A rival is tried at the scale's rates; where the best of them is the highest or the lowest, at twice or half of it too.

python -m benchmarks.study.learning_rates --data data/docs --scale gpu-15m
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.study.command import main
from benchmarks.study.results import Results
from benchmarks.study.scales import Scale
from ultramem.train.config import TrainConfig

EXPERIMENT = "learning_rates"
SHARE_OF_TOKENS = 2  # a sweep's run is half as long
RIVALS = ("dense", "ultramem", "moe", "pkm", "ultramem-v2", "memory-plus", "moe-fine", "ultramem-simple")
TABLES_SWEPT = ("ultramem", "ultramem-v2")
TABLE_MULTIPLIERS = (1.0, 3.0, 10.0)
MOST_RATES = 6


def runs(scale: Scale, tokens: int, results: Results, seeds: Sequence[int]) -> Iterator[TrainConfig]:
    """The rivals; tables as soon as their trunk's learning rate is known."""
    tokens //= SHARE_OF_TOKENS
    rows = of_scale(results.rows(), scale)
    for seed in seeds:
        for rival in RIVALS:
            recipe = scale.recipe(rival)
            losses = losses_by_rate(rows, recipe.name)
            rates = trunk_rates(scale.learning_rates, losses)
            for rate in rates:
                yield variant(scale, recipe, tokens, seed, learning_rate=rate)
            if rival in TABLES_SWEPT and set(rates) <= set(losses):
                best = min(rates, key=losses.__getitem__)
                for start in TABLE_MULTIPLIERS:
                    if start != recipe.optimizer.table_multiplier_start:
                        yield variant(scale, recipe, tokens, seed, learning_rate=best, table_multiplier_start=start)
                horizon = scale.fit(recipe, tokens).steps // 3
                yield variant(scale, recipe, tokens, seed, learning_rate=best, table_horizon_steps=horizon)


def of_scale(rows: list[dict[str, Any]], scale: Scale) -> list[dict[str, Any]]:
    """The runs of one scale: another batch has other rates."""
    return [row for row in rows if row["scale"] == scale.name]


def losses_by_rate(rows: list[dict[str, Any]], name: str) -> dict[float, float]:
    """The lowest validation loss of a recipe's runs at each learning rate."""
    losses: dict[float, float] = {}
    for row in rows:
        if row["name"] == name:
            rate = row["settings"]["optimizer"]["learning_rate"]
            losses[rate] = min(row["validation_loss"], losses.get(rate, math.inf))
    return losses


def trunk_rates(first: Sequence[float], losses: Mapping[float, float]) -> list[float]:
    """The learning rates to try: so many that the best lies between two others, as far as the losses tell.

    Example:
        >>> trunk_rates([0.1, 0.2], {})
        [0.1, 0.2]
        >>> trunk_rates([0.1, 0.2], {0.1: 3.0, 0.2: 2.0})
        [0.1, 0.2, 0.4]
        >>> trunk_rates([0.1, 0.2], {0.1: 3.0, 0.2: 2.0, 0.4: 4.0})
        [0.1, 0.2, 0.4]
    """
    rates = sorted(first)
    while set(rates) <= set(losses) and len(rates) < MOST_RATES:
        best = min(rates, key=losses.__getitem__)
        if best == rates[-1]:
            rates.append(2 * best)
        elif best == rates[0]:
            rates.insert(0, best / 2)
        else:
            break
    return rates


def variant(scale: Scale, config: TrainConfig, tokens: int, seed: int, **optimizer: Any) -> TrainConfig:
    """A short run of a recipe with other optimizer settings."""
    return scale.fit(replace(config, optimizer=replace(config.optimizer, **optimizer)), tokens, seed=seed)


def best_optimizer(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The optimizer settings of a recipe's best run at one scale; there has to be one."""
    return _best(rows, name)["optimizer"]


def tuned(config: TrainConfig, rows: list[dict[str, Any]], scale: Scale) -> TrainConfig:
    """Give a fitted run the rates of the sweep's best one: its own, else those of the model nearest to it.

    What has no memory takes the dense model's learning rate, what has one UltraMem's, with the tables' multiple and its
    horizon as a share of the run. A run stays as it is where nothing was swept.
    """
    rows = of_scale(rows, scale)
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
