"""Dense models of one to eight times the size on the same tokens: which of them is as good as a sparse model?

The sparse models and the smallest dense one are those of `equal_compute`; the report interpolates between the best of
each size. The learning rate falls with the root of the width, from the best of the smallest; with the first seed half
of that is tried, too.

python -m benchmarks.study.dense_equivalent --data data/docs --scale gpu-15m
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.study.command import main
from benchmarks.study.learning_rates import EXPERIMENT as SWEEP
from benchmarks.study.learning_rates import losses_by_rate, of_scale, tuned
from benchmarks.study.results import Results
from benchmarks.study.scales import Scale
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig

EXPERIMENT = "dense_equivalent"
FACTORS = (2, 4, 8)


def runs(scale: Scale, tokens: int, results: Results, seeds: Sequence[int]) -> Iterator[TrainConfig]:
    """The larger sizes, ascending."""
    rates = results.of(SWEEP)
    for seed in seeds:
        dense = tuned(scale.fit(scale.recipe("dense"), tokens, seed=seed), rates, scale)
        for factor in FACTORS:
            larger = grown(dense, factor)
            rivals = [larger, with_half_the_rate(larger)]
            losses = losses_by_rate(of_scale(results.rows(), scale), larger.name)
            tried = {rival.optimizer.learning_rate: rival for rival in rivals}
            yield from [tried[min(tried, key=losses.__getitem__)]] if set(tried) <= set(losses) else rivals


def grown(dense: TrainConfig, factor: int) -> TrainConfig:
    """A dense model with `factor` times the matrices: layers by the cube root of it, widths by what remains."""
    model = dense.model
    layers = round(model.num_hidden_layers * factor ** (1 / 3))
    stretch = (factor * model.num_hidden_layers / layers) ** 0.5
    # Heads keep their width, and there is one more for each width more.
    heads = round(model.num_attention_heads * stretch)
    hidden_size = heads * model.head_dim
    matrices = (
        factor * model.num_hidden_layers * (4 * model.hidden_size**2 + 3 * model.hidden_size * model.intermediate_size)
    )
    intermediate_size = round((matrices / layers - 4 * hidden_size**2) / (3 * hidden_size) / 8) * 8
    larger = with_model(
        dense,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    rate = dense.optimizer.learning_rate * (model.hidden_size / hidden_size) ** 0.5
    return replace(larger, name=f"{dense.name}-x{factor}", optimizer=replace(dense.optimizer, learning_rate=rate))


def with_half_the_rate(config: TrainConfig) -> TrainConfig:
    """The same run at half the learning rate: larger models are not swept, and the width's root may be too little."""
    return replace(config, optimizer=replace(config.optimizer, learning_rate=config.optimizer.learning_rate / 2))


if __name__ == "__main__":
    main(EXPERIMENT, __doc__, runs)
