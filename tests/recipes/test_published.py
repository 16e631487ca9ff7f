import pytest

from ultramem import recipes
from ultramem.accounting import count_flops, count_parameters

# UltraMem, table 2, in millions: matrices without embeddings. The published figures are rounded to two digits.
LADDER_MATRICES = {
    "01-pkm": 173.007,
    "02-no-softmax": 173.007,
    "03-half-value": 178.467,
    "04-shared-query": 173.453,
    "05-split": 161.640,
    "06-qk-norm": 161.640,
    "07-ive": 172.358,
    "08-tdqkr": 172.358,
    "09-mcs": 172.358,
    "10-init": 172.358,
    "11-value-lr": 172.358,
    "12-query-conv": 172.358,
}

# UltraMem, table 1: parameters in billions, GFLOPs a token.
PUBLISHED = {
    "dense-151m": (0.15, 0.30),
    "dense-680m": (0.68, 1.36),
    "dense-1.6b": (1.61, 3.22),
    "dense-6.5b": (6.44, 12.88),
    "moe-151m-2in32": (2.04, 0.35),
    "moe-680m-2in33": (8.95, 1.51),
    "moe-1.6b-2in34": (21.36, 3.52),
    "ultramem-151m-x12": (2.03, 0.35),
    "ultramem-680m-x12": (8.93, 1.49),
    "ultramem-1.6b-x12": (21.41, 3.50),
}


@pytest.mark.parametrize(("rung", "millions"), LADDER_MATRICES.items())
def test_matrices_of_table_two_to_the_digit(rung, millions):
    matrices = count_parameters(recipes.get(f"ladder-151m-{rung}").model).matrices
    assert round(matrices / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("dense-151m", 12 * 12 * 1024**2),
        ("pkm-151m-x10", 12 * 12 * 1024**2 + 2 * 2 * 1024 * 2448 + 2 * 2 * 1224 * 2448),
        (
            "ultramem-151m-x10",
            12 * 12 * 1024**2 + 3 * (2 * 1024 * 500 + 2 * 2 * 2000 * 500 + 4 * 512 * 1024),
        ),
    ],
)
def test_matrices_are_the_sum_that_the_paper_writes(name, formula):
    assert count_parameters(recipes.get(name).model).matrices == formula


@pytest.mark.parametrize(("name", "table"), [("pkm-151m-x10", 1.534e9), ("ultramem-151m-x10", 1.536e9)])
def test_sparse_parameters(name, table):
    assert round(count_parameters(recipes.get(name).model).tables / 1e9, 3) == table / 1e9


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_sizes_and_compute_of_table_one(name, published):
    config = recipes.get(name).model
    billions, gigaflops = published
    # The experts' inner size is rounded to a multiple of 8, which moves the third digit.
    tolerance = 0.002 if name.startswith("moe") else 0
    assert count_parameters(config).without_embeddings / 1e9 == pytest.approx(billions, abs=0.005, rel=tolerance)
    assert count_flops(config, 2048).per_token / 1e9 == pytest.approx(gigaflops, abs=0.005, rel=tolerance)


def test_training_follows_the_paper():
    config = recipes.get("ultramem-1.6b-x12")
    assert config.optimizer.learning_rate == 2e-4
    assert config.optimizer.betas == (0.9, 0.95)
    assert config.optimizer.weight_decay == 0.1
    assert config.optimizer.learning_rate_schedule(config.steps)(config.steps - 1) == pytest.approx(0.1)
    assert config.optimizer.learning_rate_schedule(config.steps)(config.steps // 100) == pytest.approx(1.0, abs=1e-3)
    assert config.optimizer.table_multiplier(config.steps)(0) == 10
    assert config.steps * config.tokens_per_step == pytest.approx(1e12, rel=1e-4)
    assert config.model.dropout == 0.1
    assert set(config.model.block_ffns) == {"gelu"}
