"""Learning rates from short runs: the trunk's for each rival, then the tables' multiple and its horizon for UltraMem.

Dense and UltraMem are tried at all of the scale's rates. The others are tried at the two that served the nearest of
these best: dense for the experts, UltraMem for what has a memory.

python -m benchmarks.study.learning_rates --data data/docs --scale gpu-15m
"""

from collections.abc import Iterator, Sequence
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
SWEPT_AFTERWARDS = {
    "moe": "dense",
    "pkm": "ultramem",
    "ultramem-v2": "ultramem",
    "memory-plus": "ultramem",
    "moe-fine": "dense",
}
RATES_AFTERWARDS = 2


def runs(scale: Scale, tokens: int, results: Results, seeds: Sequence[int]) -> Iterator[TrainConfig]:
    """Dense and UltraMem; when these are there, UltraMem's tables at its best rate and the other rivals."""
    tokens //= SHARE_OF_TOKENS
    for seed in seeds:
        first = [run for rival in SWEPT_FIRST for run in trunk_rates(scale, rival, tokens, seed, scale.learning_rates)]
        yield from first
        if any(results.missing(first)):
            return
        ultramem = scale.recipe("ultramem")
        (best,) = best_rates(scale, "ultramem", results, 1)
        for start in TABLE_MULTIPLIERS:
            yield variant(scale, ultramem, tokens, seed, learning_rate=best, table_multiplier_start=start)
        horizon = scale.fit(ultramem, tokens).steps // 3
        yield variant(scale, ultramem, tokens, seed, learning_rate=best, table_horizon_steps=horizon)
        for rival, nearest in SWEPT_AFTERWARDS.items():
            rates = best_rates(scale, nearest, results, RATES_AFTERWARDS)
            yield from trunk_rates(scale, rival, tokens, seed, rates)


def best_rates(scale: Scale, rival: str, results: Results, count: int) -> list[float]:
    """The learning rates that served a rival best, the best first."""
    rows = [row for row in results.rows() if row["name"] == f"{scale.family}-{rival}"]
    rows.sort(key=lambda row: row["validation_loss"])
    return list(dict.fromkeys(row["settings"]["optimizer"]["learning_rate"] for row in rows))[:count]


def trunk_rates(scale: Scale, rival: str, tokens: int, seed: int, rates: Sequence[float]) -> Iterator[TrainConfig]:
    """One rival at each of some learning rates."""
    for rate in rates:
        yield variant(scale, scale.recipe(rival), tokens, seed, learning_rate=rate)


def variant(scale: Scale, config: TrainConfig, tokens: int, seed: int, **optimizer: Any) -> TrainConfig:
    """A short run of a recipe with other optimizer settings."""
    return scale.fit(replace(config, optimizer=replace(config.optimizer, **optimizer)), tokens, seed=seed)


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
