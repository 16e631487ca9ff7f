from dataclasses import replace

import pytest

from ultramem import recipes
from ultramem.accounting import count_active_parameters, count_flops, count_parameters

FAMILIES = ("cpu", "gpu-15m", "gpu-25m", "gpu-100m")
RIVALS = ("dense", "moe", "moe-fine", "pkm", "memory-plus", "ultramem", "ultramem-simple", "ultramem-v2", "peer")


def family(name):
    return {rival: recipes.get(f"{name}-{rival}") for rival in RIVALS}


@pytest.mark.parametrize("name", FAMILIES)
def test_rivals_spend_equal_compute(name):
    flops = [count_flops(rival.model, rival.sequence_length).per_token for rival in family(name).values()]
    assert max(flops) / min(flops) < 1.02


@pytest.mark.parametrize("name", FAMILIES)
def test_sparse_rivals_are_of_one_size(name):
    sizes = {rival: count_parameters(config.model).without_embeddings for rival, config in family(name).items()}
    dense = sizes.pop("dense")
    assert max(sizes.values()) / min(sizes.values()) < 1.03
    assert all(8 < size / dense < 12 for size in sizes.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_rivals_are_trained_alike(name):
    """But for the tables of UltraMemV2 on a laptop, which begin at another multiple."""

    def training(config):
        if config.name == "cpu-ultramem-v2":
            config = replace(config, optimizer=replace(config.optimizer, table_multiplier_start=10.0))
        return vars(config) | {"name": None, "model": None}

    first, *others = family(name).values()
    assert all(training(other) == training(first) for other in others)


def test_the_cpu_family_is_small_enough_for_a_laptop():
    for config in family("cpu").values():
        assert 1e6 < count_active_parameters(config.model).matrices < 2e6
