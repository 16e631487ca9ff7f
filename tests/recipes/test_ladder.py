from itertools import pairwise

import pytest

from ultramem import recipes
from ultramem.recipes.ladder import STEPS
from ultramem.train.config_json import config_to_dict

SCALES = ("151m", "cpu")


def rungs(scale):
    return [recipes.get(f"ladder-{scale}-{number:02}-{step.name}") for number, step in enumerate(STEPS, start=1)]


def settings(config):
    return {name: value for name, value in config_to_dict(config).items() if name != "name"}


def test_the_papers_last_rung_is_its_ultramem():
    assert settings(rungs("151m")[-1]) == settings(recipes.get("ultramem-151m-x10"))


@pytest.mark.parametrize(("scale", "bottom"), [("151m", "pkm-151m-x10"), ("cpu", "cpu-pkm")])
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
