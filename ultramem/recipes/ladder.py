"""The ladder from product keys to UltraMem (arXiv 2411.12364, table 2): each recipe adds one step to the one before it.

`ladder-151m-01-pkm` is product-key memory on the paper's 151M trunk and `ladder-151m-12-query-conv` is
`ultramem-151m-x10`; `ladder-cpu-…` and `ladder-gpu-25m-…` climb the same steps at the sizes of those families.

Three steps have a number that the paper varies alone: the expansion E, the Tucker rank r, the cores h. Beside the step
with the paper's choice (E 4, r 2, h 2) stands one recipe for each other choice, on the same rung below:
`ladder-cpu-07-ive-9` is `ladder-cpu-06-qk-norm` with nine virtual tables. All of a ladder:

    ultramem compare 'ladder-cpu-*' --data data/corpus --out runs/ladder
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ultramem.recipes import laptop, one_gpu, published
from ultramem.recipes.registry import Registry, with_model
from ultramem.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the steps that change the table's shape change it to."""

    narrow_keys: int
    """Keys a side once values are half as wide: about sqrt(2) times as many, so that the table keeps its size."""
    units: list[str]
    """Where the smaller memories of the split lie."""
    split_keys: int
    """Keys a side of each of them."""
    split_key_size: int
    """Width of their keys."""


@dataclass(frozen=True)
class Step:
    """One change on the way."""

    name: str
    description: str
    apply: Callable[[TrainConfig, Sizes], TrainConfig]


def climb(start: Callable[[], TrainConfig], sizes: Sizes, steps: Sequence[Step]) -> TrainConfig:
    """Apply steps one after another to the recipe of a product-key memory."""
    config = start()
    for step in steps:
        config = step.apply(config, sizes)
    return config


def _bare(config: TrainConfig, sizes: Sizes) -> TrainConfig:
    optimizer = replace(config.optimizer, table_multiplier_start=1.0, table_multiplier_end=1.0)
    return replace(config, optimizer=optimizer)


def _half_value(config: TrainConfig, sizes: Sizes) -> TrainConfig:
    return with_model(config, memory_value_size=config.model.hidden_size // 2, memory_num_keys=sizes.narrow_keys)


def _split(config: TrainConfig, sizes: Sizes) -> TrainConfig:
    return with_model(
        config,
        memory_units=sizes.units,
        memory_num_keys=sizes.split_keys,
        memory_key_size=sizes.split_key_size,
    )


def _expand(config: TrainConfig, sizes: Sizes, expansion: int = 4) -> TrainConfig:
    return with_model(config, memory_expansion=expansion)


def _tucker(config: TrainConfig, sizes: Sizes, rank: int = 2) -> TrainConfig:
    # UltraMem's layer has the earlier steps built in, and their settings go back to what it expects.
    return with_model(
        config,
        memory="ultramem",
        memory_key_size=sizes.split_key_size // rank * rank,
        memory_softmax=True,
        memory_shared_query=False,
        memory_qk_norm=False,
        memory_tucker_rank=rank,
        memory_num_cores=1,
        memory_improved_init=False,
    )


def _cores(config: TrainConfig, sizes: Sizes, num_cores: int = 2) -> TrainConfig:
    return with_model(config, memory_num_cores=num_cores)


def _fast_tables(config: TrainConfig, sizes: Sizes) -> TrainConfig:
    return replace(config, optimizer=replace(config.optimizer, table_multiplier_start=10.0))


STEPS = [
    Step("pkm", "Product-key memory in its own form.", _bare),
    Step("no-softmax", "Raw scores weight the values.", lambda c, _: with_model(c, memory_softmax=False)),
    Step("half-value", "Values half as wide, twice as many, and a projection after pooling.", _half_value),
    Step("shared-query", "Two heads share one query.", lambda c, _: with_model(c, memory_shared_query=True)),
    Step("split", "Several smaller memories, each added to a later block than it reads.", _split),
    Step("qk-norm", "Queries and keys are normalised.", lambda c, _: with_model(c, memory_qk_norm=True)),
    Step("ive", "Implicit value expansion by four.", _expand),
    Step("tdqkr", "Tucker-decomposed retrieval of rank two.", _tucker),
    Step("mcs", "Multi-core scoring with two cores.", _cores),
    Step("init", "UltraMem's initialisation.", lambda c, _: with_model(c, memory_improved_init=True)),
    Step("value-lr", "The tables learn ten times faster at first.", _fast_tables),
    Step(
        "query-conv", "A convolution before the query: UltraMem.", lambda c, _: with_model(c, memory_query_conv_size=4)
    ),
]

# The same step with another number than the paper's ladder has: by the step's name.
ALTERNATIVES = {
    "ive": [Step(f"ive-{e}", f"Implicit value expansion by {e}.", partial(_expand, expansion=e)) for e in (9, 16)],
    "tdqkr": [
        Step(f"tdqkr-{r}", f"Tucker-decomposed retrieval of rank {r}.", partial(_tucker, rank=r)) for r in (3, 4)
    ],
    "mcs": [Step(f"mcs-{h}", f"Multi-core scoring with {h} cores.", partial(_cores, num_cores=h)) for h in (4, 8)],
}

LADDERS = {
    "151m": (
        published.pkm_151m_x10,
        Sizes(narrow_keys=1728, units=["3:6", "6:9", "9:12"], split_keys=1000, split_key_size=500),
    ),
    "cpu": (
        laptop.cpu_pkm,
        Sizes(narrow_keys=444, units=["1:2", "3:4", "5:6"], split_keys=256, split_key_size=32),
    ),
    "gpu-25m": (
        one_gpu.gpu_25m_pkm,
        Sizes(narrow_keys=996, units=["1:3", "4:6", "6:8"], split_keys=576, split_key_size=128),
    ),
}

RECIPES = Registry()
for scale, (start, sizes) in LADDERS.items():
    for number, step in enumerate(STEPS, start=1):
        for choice in (step, *ALTERNATIVES.get(step.name, ())):
            RECIPES.add(f"ladder-{scale}-{number:02}-{choice.name}", choice.description)(
                partial(climb, start, sizes, [*STEPS[: number - 1], choice])
            )
