"""The ladder from product keys to UltraMem, and the expansion E, the rank r and the cores h alone.

All rungs have the learning rate of UltraMem's best run in `learning_rates`; the step "value-lr" is the ladder's own.

python -m benchmarks.study.ladder --data data/docs --scale gpu-25m
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from benchmarks.study.command import main
from benchmarks.study.learning_rates import EXPERIMENT as SWEEP
from benchmarks.study.learning_rates import best_optimizer, of_scale
from benchmarks.study.results import Results
from benchmarks.study.scales import Scale
from ultramem import recipes
from ultramem.recipes.ladder import STEPS
from ultramem.train.config import TrainConfig

EXPERIMENT = "ladder"

# Validation loss after each step: UltraMem, arXiv 2411.12364, table 2, 151M parameters on a trillion tokens.
PAPER = {
    "01-pkm": 2.828,
    "02-no-softmax": 2.822,
    "03-half-value": 2.800,
    "04-shared-query": 2.803,
    "05-split": 2.788,
    "06-qk-norm": 2.789,
    "07-ive": 2.772,
    "08-tdqkr": 2.764,
    "09-mcs": 2.761,
    "10-init": 2.758,
    "11-value-lr": 2.736,
    "12-query-conv": 2.736,
}

# The steps whose number is varied alone: its symbol, and the ladder's own.
CHOICES = {"07-ive": ("E", 4), "08-tdqkr": ("r", 2), "09-mcs": ("h", 2)}

# What the paper's alone-ablations give against the rung below, in validation loss.
PAPER_ALONE = {
    "07-ive": -0.017,
    "07-ive-9": -0.025,
    "07-ive-16": -0.027,
    "08-tdqkr": -0.008,
    "08-tdqkr-3": -0.0084,
    "08-tdqkr-4": -0.0082,
    "09-mcs": -0.003,
    "09-mcs-4": 0.001,
    "09-mcs-8": 0.006,
}


def runs(
    scale: Scale, tokens: int, results: Results, seeds: Sequence[int], alternatives: bool = True
) -> Iterator[TrainConfig]:
    """The twelve rungs, then what varies alone, with one seed after the other."""
    rates = of_scale(results.of(SWEEP), scale)
    ultramem = f"{scale.family}-ultramem"
    swept = any(row["name"] == ultramem for row in rates)
    everything = recipes.matching(f"ladder-{scale.family}-*")
    rungs = [f"ladder-{scale.family}-{number:02}-{step.name}" for number, step in enumerate(STEPS, start=1)]
    alone = [name for name in everything if name not in rungs] if alternatives else []
    for seed, name in product(seeds, (*rungs, *alone)):
        rung = scale.fit(recipes.get(name), tokens, seed=seed)
        if swept:
            rate = best_optimizer(rates, ultramem)["learning_rate"]
            rung = replace(rung, optimizer=replace(rung.optimizer, learning_rate=rate))
        yield rung


if __name__ == "__main__":
    main(EXPERIMENT, __doc__, runs)
