import json
from dataclasses import replace

import pytest

from ultramem import recipes
from ultramem.train.config import OptimizerConfig
from ultramem.train.config_json import config_to_dict

tyro = pytest.importorskip("tyro")
overrides = pytest.importorskip("ultramem.cli.overrides")
flags_of, resolve, run_flags = overrides.flags_of, overrides.resolve, overrides.run_flags


@pytest.fixture
def settings(tmp_path):
    def write(values):
        file = tmp_path / "run.json"
        file.write_text(values if isinstance(values, str) else json.dumps(values))
        return file

    return write


def test_nothing_given_changes_nothing():
    assert config_to_dict(resolve("cpu-ultramem", None, {})) == config_to_dict(recipes.get("cpu-ultramem"))


def test_flags_win_over_the_file_which_wins_over_the_recipe(settings):
    file = settings({"steps": 70, "seed": 3, "optimizer": {"floor": 0.5}, "model": {"memory_top_k": 5}})
    config = resolve("cpu-ultramem", file, {"steps": 90, "optimizer": {"learning_rate": 1.0}})
    assert (config.steps, config.seed) == (90, 3)
    assert (config.optimizer.learning_rate, config.optimizer.floor) == (1.0, 0.5)
    assert config.model.memory_top_k == 5
    assert config.batch_size == recipes.get("cpu-ultramem").batch_size


def test_a_whole_run_json_is_taken_over(settings):
    other = replace(recipes.get("cpu-pkm"), steps=70)
    assert config_to_dict(resolve("cpu-pkm", settings(config_to_dict(other)), {})) == config_to_dict(other)


def test_a_run_json_of_another_recipe_is_refused(settings):
    file = settings(config_to_dict(recipes.get("gpu-25m-pkm")))
    with pytest.raises(ValueError, match="is of the recipe 'gpu-25m-pkm', not of 'cpu-dense'"):
        resolve("cpu-dense", file, {})


def test_what_follows_from_a_changed_field_follows():
    assert resolve("cpu-dense", None, {"model": {"hidden_size": 64}}).model.head_dim == 16


def test_a_list_is_replaced_not_joined():
    config = resolve("cpu-ultramem", None, {"model": {"memory_units": ["2:4"]}})
    assert config.model.memory_units == ["2:4"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "stepz.*steps"),
        ({"model": {"memory_topk": 3}}, "memory_topk.*memory_top_k"),
        ({"optimizer": {"learning_rat": 3}}, "learning_rat.*learning_rate"),
        ({"steps": "many"}, "many"),
        ("{", "is not JSON"),
        ("[1]", "no settings"),
    ],
)
def test_a_wrong_file_is_refused(settings, values, message):
    with pytest.raises(ValueError, match=message):
        resolve("cpu-ultramem", settings(values), {})


def test_only_given_flags_are_parsed():
    given = tyro.cli(run_flags(), args=["--steps", "5", "--compile", "--model.memory-units", "1:2", "3:4"])
    assert given == {
        "steps": 5,
        "compile": True,
        "model": {"memory_units": ["1:2", "3:4"]},
        "optimizer": {},
        "parallel": {},
    }


def test_a_setting_can_be_turned_off_and_emptied():
    given = tyro.cli(run_flags(), args=["--no-compile", "--optimizer.clip-norm", "None", "--model.memory", "None"])
    assert given == {"compile": False, "optimizer": {"clip_norm": None}, "model": {"memory": None}, "parallel": {}}


def test_every_flag_has_help(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(flags_of(OptimizerConfig), args=["--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "Peak learning rate" in output
    assert "unset by default" not in output


def test_the_vocabulary_is_the_datas(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(run_flags(), args=["--model.vocab-size", "5"])
