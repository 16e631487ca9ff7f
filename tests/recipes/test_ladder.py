import json
from itertools import pairwise

import pytest

from ultramem import recipes
from ultramem.accounting import count_parameters
from ultramem.cli import main
from ultramem.recipes.ladder import ALTERNATIVES, STEPS
from ultramem.train.config_json import config_to_dict

SCALES = ("151m", "cpu", "gpu-25m")

# One forward and backward pass of every rung in a fraction of a second; widths divide by every rank and core count.
TINY = {
    "steps": 2,
    "batch_size": 2,
    "sequence_length": 16,
    "evaluate_batches": 1,
    "optimizer": {"warmup_steps": 1},
    "model": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "memory_num_keys": 8,
        "memory_key_size": 12,
        "memory_value_size": 16,
        "memory_top_k": 4,
    },
}


def rungs(scale):
    return [recipes.get(f"ladder-{scale}-{number:02}-{step.name}") for number, step in enumerate(STEPS, start=1)]


def settings(config):
    return {name: value for name, value in config_to_dict(config).items() if name != "name"}


def changed_fields(one, other):
    """Fields of the model that differ."""
    return {name for name, value in settings(one)["model"].items() if settings(other)["model"][name] != value}


@pytest.mark.parametrize(("scale", "top"), [("151m", "ultramem-151m-x10"), ("gpu-25m", "gpu-25m-ultramem")])
def test_the_last_rung_is_ultramem(scale, top):
    assert settings(rungs(scale)[-1]) == settings(recipes.get(top))


@pytest.mark.parametrize(
    ("scale", "bottom"), [("151m", "pkm-151m-x10"), ("cpu", "cpu-pkm"), ("gpu-25m", "gpu-25m-pkm")]
)
def test_the_first_rung_is_product_keys_without_fast_tables(scale, bottom):
    first, pkm = rungs(scale)[0], recipes.get(bottom)
    assert first.model.to_dict() == pkm.model.to_dict()
    assert first.optimizer.table_multiplier(first.steps)(0) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_every_step_changes_something(scale):
    for below, above in pairwise(rungs(scale)):
        assert settings(below) != settings(above), above.name


@pytest.mark.parametrize("scale", SCALES)
def test_the_trunk_stays(scale):
    for field in ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"):
        assert len({getattr(rung.model, field) for rung in rungs(scale)}) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_the_table_keeps_its_size(scale):
    tables = [count_parameters(rung.model).tables for rung in rungs(scale)]
    assert max(tables) / min(tables) < 1.01


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("step", "field", "choices"),
    [
        ("07-ive", "memory_expansion", (4, 9, 16)),
        ("08-tdqkr", "memory_tucker_rank", (2, 3, 4)),
        ("09-mcs", "memory_num_cores", (2, 4, 8)),
    ],
)
def test_expansion_rank_and_cores_vary_alone(scale, step, field, choices):
    papers, *others = (
        recipes.get(f"ladder-{scale}-{step}" + (f"-{choice}" if number else ""))
        for number, choice in enumerate(choices)
    )
    assert [getattr(config.model, field) for config in (papers, *others)] == list(choices)
    # Three does not divide every key's width: the nearest width below that it divides is taken.
    assert all(changed_fields(papers, other) - {"memory_key_size"} == {field} for other in others)
    assert all(0 <= papers.model.memory_key_size - other.model.memory_key_size < 3 for other in others)


def test_one_command_climbs_the_whole_ladder(prepared, tmp_path):
    tiny = tmp_path / "tiny.json"
    tiny.write_text(json.dumps(TINY))
    out = tmp_path / "ladder"
    assert main(["compare", "ladder-cpu-*", "--data", str(prepared), "--out", str(out), "--config", str(tiny)]) == 0
    compared = json.loads((out / "comparison.json").read_text())["recipes"]
    assert [recipe["name"] for recipe in compared] == recipes.matching("ladder-cpu-*")
    assert len(compared) == len(STEPS) + sum(map(len, ALTERNATIVES.values())) == 18
    assert (out / "report.html").exists()


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'ladder-tpu-\*' fits no name"):
        recipes.matching("ladder-tpu-*")


def test_a_name_is_no_pattern():
    assert recipes.matching("cpu-dense") == ["cpu-dense"]
