"""The ladder from product keys to UltraMem (arXiv 2411.12364, table 2): each recipe adds one step to the one before it.

`ladder-151m-01-pkm` is product-key memory on the paper's 151M trunk and `ladder-151m-12-query-conv` is
`ultramem-151m-x10`; `ladder-cpu-…` climbs the same steps at the size of the `cpu-…` family.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from ultramem.recipes import published, small
from ultramem.recipes.registry import Registry, with_model
from ultramem.train.config import TrainConfig

Step = Callable[[TrainConfig], TrainConfig]


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


class Rung(NamedTuple):
    """One recipe of the ladder."""

    name: str
    description: str
    config: TrainConfig


def climb(pkm: TrainConfig, sizes: Sizes) -> Iterator[Rung]:
    """Yield a rung a step: the recipe with this step and all before it."""
    hidden_size = pkm.model.hidden_size
    bare = replace(pkm, optimizer=replace(pkm.optimizer, table_multiplier_start=1.0, table_multiplier_end=1.0))
    rungs: list[tuple[str, str, Step]] = [
        ("pkm", "Product-key memory in its own form.", lambda c: c),
        ("no-softmax", "Raw scores weight the values.", lambda c: with_model(c, memory_softmax=False)),
        (
            "half-value",
            "Values half as wide, twice as many, and a projection after pooling.",
            lambda c: with_model(c, memory_value_size=hidden_size // 2, memory_num_keys=sizes.narrow_keys),
        ),
        ("shared-query", "Two heads share one query.", lambda c: with_model(c, memory_shared_query=True)),
        (
            "split",
            "Several smaller memories, each added to a later block than it reads.",
            lambda c: with_model(
                c,
                memory_units=sizes.units,
                memory_num_keys=sizes.split_keys,
                memory_key_size=sizes.split_key_size,
            ),
        ),
        ("qk-norm", "Queries and keys are normalised.", lambda c: with_model(c, memory_qk_norm=True)),
        ("ive", "Implicit value expansion by four.", lambda c: with_model(c, memory_expansion=4)),
        ("tdqkr", "Tucker-decomposed retrieval of rank two.", _with_tucker),
        ("mcs", "Multi-core scoring with two cores.", lambda c: with_model(c, memory_num_cores=2)),
        ("init", "UltraMem's initialisation.", lambda c: with_model(c, memory_improved_init=True)),
        (
            "value-lr",
            "The tables learn ten times faster at first.",
            lambda c: replace(c, optimizer=replace(c.optimizer, table_multiplier_start=10.0)),
        ),
        (
            "query-conv",
            "A causal convolution before the query: UltraMem.",
            lambda c: with_model(c, memory_query_conv_size=4),
        ),
    ]
    config = bare
    for number, (name, description, step) in enumerate(rungs, start=1):
        config = step(config)
        yield Rung(f"{number:02}-{name}", description, config)


def _with_tucker(config: TrainConfig) -> TrainConfig:
    # UltraMem's layer has the earlier steps built in, and their settings go back to what it expects.
    return with_model(
        config,
        memory="ultramem",
        memory_softmax=True,
        memory_shared_query=False,
        memory_qk_norm=False,
        memory_tucker_rank=2,
        memory_num_cores=1,
        memory_improved_init=False,
    )


PAPER_SIZES = Sizes(narrow_keys=1728, units=["3:6", "6:9", "9:12"], split_keys=1000, split_key_size=500)
CPU_SIZES = Sizes(narrow_keys=444, units=["1:2", "3:4", "5:6"], split_keys=256, split_key_size=32)

RECIPES = Registry()
for scale, base, sizes in (("151m", published.pkm_151m_x10, PAPER_SIZES), ("cpu", small.cpu_pkm, CPU_SIZES)):
    for rung in climb(base(), sizes):
        RECIPES.add(f"ladder-{scale}-{rung.name}", rung.description)(lambda config=rung.config: config)
