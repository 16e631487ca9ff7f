from dataclasses import replace

import pytest
import torch

from ultramem import recipes
from ultramem.accounting import count_active_parameters, count_parameters
from ultramem.layers import Table
from ultramem.models.branches import memory_layer, memory_tables
from ultramem.recipes.registry import with_model

TRUNK_LAYERS, HIDDEN = 20, 768
ATTENTION = 4 * HIDDEN**2

# UltraMemV2's table of open models: 1.18B parameters without embeddings, 227M active ones with them.
PUBLISHED_TOTAL = 1.18e9

MATRICES = {
    "moe-227m-8in64": TRUNK_LAYERS * (ATTENTION + 64 * HIDDEN + 64 * 3 * HIDDEN * 384),
    "ultramem-227m": TRUNK_LAYERS * (ATTENTION + 3 * HIDDEN * 2752)
    + 4 * (2 * HIDDEN * 192 + 2 * 2 * (2 * 808) * 192 + 4 * 384 * HIDDEN),
    "memory-plus-227m": TRUNK_LAYERS * (ATTENTION + 3 * HIDDEN * 3008)
    + 4 * (2 * 2 * HIDDEN * 384 + 2 * 2 * 1138 * 384 + 2 * HIDDEN**2),
    "ultramemv2-227m": TRUNK_LAYERS
    * (ATTENTION + 3 * HIDDEN * 2496 + 2 * 2 * HIDDEN * 192 + 2 * 2 * 360 * 192 + 2 * 192 * HIDDEN),
}
TABLES = {
    "moe-227m-8in64": 0,
    "ultramem-227m": 4 * 808**2 * 384,
    "memory-plus-227m": 1138**2 * 768,
    "ultramemv2-227m": 20 * 360**2 * 2 * 192,
}


@pytest.mark.parametrize("name", MATRICES)
def test_counts_are_the_sum_of_the_published_sizes(name):
    counted = count_parameters(recipes.get(name).model)
    assert counted.matrices == MATRICES[name]
    assert counted.tables == TABLES[name]


@pytest.mark.parametrize("name", ["moe-227m-8in64", "ultramem-227m", "ultramemv2-227m"])
def test_totals_are_the_papers(name):
    counted = count_parameters(recipes.get(name).model)
    assert counted.without_embeddings == pytest.approx(PUBLISHED_TOTAL, rel=0.01)


def active_with_embeddings(name):
    model = recipes.get(name).model
    return count_active_parameters(model).without_embeddings + count_parameters(model).embeddings


@pytest.mark.parametrize(("name", "published"), [("moe-227m-8in64", 227e6), ("ultramemv2-227m", 225e6)])
def test_active_parameters_are_the_papers(name, published):
    assert active_with_embeddings(name) == pytest.approx(published, rel=0.01)


def test_the_larger_model_has_olmoes_size():
    # OLMoE-1B-7B: 6.9B parameters, 1.3B active.
    assert count_parameters(recipes.get("ultramemv2-1b").model).total == pytest.approx(6.92e9, rel=0.01)
    assert active_with_embeddings("ultramemv2-1b") == pytest.approx(1.28e9, rel=0.01)


def test_the_first_memory_starts_with_scores_of_mean_one_and_the_variance_of_a_branch():
    """Equation 26 at the published sizes; tests/layers measures it at others."""
    torch.manual_seed(0)
    model = with_model(recipes.get("ultramemv2-227m"), memory_units=["1:1"]).model
    layer, (table,) = memory_layer(model, 0), memory_tables(model, Table)
    with torch.no_grad():
        output = layer(torch.randn(1, 256, HIDDEN), table)
    assert output.values.mean().item() == pytest.approx(1, rel=0.10)
    assert output.hidden_states.std().item() == pytest.approx((2 * TRUNK_LAYERS) ** -0.5, rel=0.15)


def test_values_learn_four_times_faster_at_first_or_as_fast_as_the_rest():
    """The paper's two schedules: 4x where a run is short, 1x where it is long."""
    config = recipes.get("ultramemv2-227m")
    assert [config.optimizer.table_multiplier(config.steps)(step) for step in (0, config.steps)] == [4, 1]
    even = replace(config.optimizer, table_multiplier_start=1.0).table_multiplier(config.steps)
    assert {even(step) for step in range(0, config.steps, 10_000)} == {1}


@pytest.mark.parametrize("name", MATRICES)
def test_all_are_trained_alike_on_half_a_trillion_tokens(name):
    config, first = recipes.get(name), recipes.get("moe-227m-8in64")
    assert config.steps * config.tokens_per_step == pytest.approx(5e11, rel=1e-4)
    assert config.optimizer == first.optimizer
    assert config.optimizer.learning_rate == 4e-4
    assert config.model.attention_qk_norm
    assert (config.model.hidden_size, config.model.num_hidden_layers) == (HIDDEN, TRUNK_LAYERS)
