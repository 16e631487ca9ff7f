"""UltraMem with 1, 4, 16 and 64 times the rows at fixed active parameters: loss, time of a step, rows that are used.

The last are the recipe's own, which `equal_compute` trains. Keys a side grow with the root of the rows. Where they are
fewer, wider feed-forward branches make up for their work.

python -m benchmarks.study.table_size --data data/docs --scale gpu-15m
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.study.command import main
from benchmarks.study.equal_compute import with_as_many_matrices
from benchmarks.study.learning_rates import EXPERIMENT as SWEEP
from benchmarks.study.learning_rates import tuned
from benchmarks.study.results import Results
from benchmarks.study.scales import Scale
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig

EXPERIMENT = "table_size"
FACTORS = (1, 4, 16)
WHOLE = 64


def runs(scale: Scale, tokens: int, results: Results, seeds: Sequence[int]) -> Iterator[TrainConfig]:
    """The smaller sizes, ascending."""
    rates = results.of(SWEEP)
    for seed in seeds:
        ultramem = tuned(scale.fit(scale.recipe("ultramem"), tokens, seed=seed), rates, scale)
        for factor in FACTORS:
            yield resized(ultramem, factor)


def resized(ultramem: TrainConfig, factor: int) -> TrainConfig:
    """UltraMem with `factor` times the fewest rows, and as many parameters in its matrices."""
    model = ultramem.model
    num_keys = round(model.memory_num_keys * (factor / WHOLE) ** 0.5)
    fewer = with_as_many_matrices(with_model(ultramem, memory_num_keys=num_keys), ultramem)
    return replace(fewer, name=f"{ultramem.name}-rows-x{factor}")


if __name__ == "__main__":
    main(EXPERIMENT, __doc__, runs)
