"""Dense, experts and the memory layers at equal compute: same trunk, same tokens in the same order, three seeds.

Each takes the learning rates of its best run in `learning_rates`, as far as that is there.

python -m benchmarks.study.equal_compute --data data/docs --scale gpu-15m
"""

from collections.abc import Iterator, Sequence

from benchmarks.study.command import main
from benchmarks.study.learning_rates import EXPERIMENT as SWEEP
from benchmarks.study.learning_rates import tuned
from benchmarks.study.results import Results
from benchmarks.study.scales import Scale
from ultramem.accounting import count_parameters
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig

EXPERIMENT = "equal_compute"
SEEDS = (0, 1, 2)
RIVALS = ("dense", "moe", "ultramem", "pkm", "moe-fine", "ultramem-v2", "memory-plus", "ultramem-simple")


def runs(
    scale: Scale, tokens: int, results: Results, seeds: Sequence[int], rivals: Sequence[str] = RIVALS
) -> Iterator[TrainConfig]:
    """All rivals, then with the next seed."""
    rates = results.of(SWEEP)
    for seed in seeds:
        for rival in rivals:
            yield tuned(scale.fit(scale.recipe(rival), tokens, seed=seed), rates, scale)


def with_as_many_matrices(config: TrainConfig, like: TrainConfig) -> TrainConfig:
    """Make feed-forward branches so wide that a model has as many parameters in its matrices as another."""
    model = config.model
    missing = count_parameters(like.model).matrices - count_parameters(model).matrices
    wider = round(missing / (3 * model.hidden_size * model.num_hidden_layers) / 8) * 8
    return with_model(config, intermediate_size=model.intermediate_size + wider)


if __name__ == "__main__":
    main(EXPERIMENT, __doc__, runs, seeds=SEEDS)
