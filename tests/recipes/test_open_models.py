import pytest

from ultramem import recipes
from ultramem.accounting import count_active_parameters, count_parameters

TRUNK_LAYERS, HIDDEN = 20, 768
ATTENTION = 4 * HIDDEN**2

# UltraMemV2's table of open models: 1.18B parameters without embeddings, 227M active ones with them.
PUBLISHED_TOTAL = 1.18e9
PUBLISHED_ACTIVE = 227e6

MATRICES = {
    "moe-227m-8in64": TRUNK_LAYERS * (ATTENTION + 64 * HIDDEN + 64 * 3 * HIDDEN * 384),
    "ultramem-227m": TRUNK_LAYERS * (ATTENTION + 3 * HIDDEN * 2752)
    + 4 * (2 * HIDDEN * 192 + 2 * 2 * (2 * 808) * 192 + 4 * 384 * HIDDEN),
}
TABLES = {"moe-227m-8in64": 0, "ultramem-227m": 4 * 808**2 * 384}


@pytest.mark.parametrize("name", MATRICES)
def test_counts_are_the_sum_of_the_published_sizes(name):
    counted = count_parameters(recipes.get(name).model)
    assert counted.matrices == MATRICES[name]
    assert counted.tables == TABLES[name]


@pytest.mark.parametrize("name", MATRICES)
def test_totals_are_the_papers(name):
    counted = count_parameters(recipes.get(name).model)
    assert counted.without_embeddings == pytest.approx(PUBLISHED_TOTAL, rel=0.01)


def test_the_experts_active_parameters_are_the_papers():
    model = recipes.get("moe-227m-8in64").model
    active = count_active_parameters(model).without_embeddings + model.vocab_size * model.hidden_size
    assert active == pytest.approx(PUBLISHED_ACTIVE, rel=0.01)


@pytest.mark.parametrize("name", MATRICES)
def test_all_are_trained_alike_on_half_a_trillion_tokens(name):
    config, first = recipes.get(name), recipes.get("moe-227m-8in64")
    assert config.steps * config.tokens_per_step == pytest.approx(5e11, rel=1e-4)
    assert config.optimizer == first.optimizer
    assert config.optimizer.learning_rate == 4e-4
    assert config.model.attention_qk_norm
    assert (config.model.hidden_size, config.model.num_hidden_layers) == (HIDDEN, TRUNK_LAYERS)
