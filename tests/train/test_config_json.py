import json

import pytest

from tests.train.tiny import tiny_config
from ultramem.train.config_json import config_from_dict, config_to_dict, load_config, model_to_dict


def plain(config):
    return json.loads(json.dumps(config_to_dict(config)))


def test_a_run_survives_json():
    config = tiny_config()
    assert config_from_dict(plain(config)) == config
    assert plain(config_from_dict(plain(config))) == plain(config)


def test_the_models_part_has_its_own_fields_only():
    values = model_to_dict(tiny_config().model)
    assert values["memory_units"] == ["1:2"]
    assert not {"transformers_version", "architectures", "id2label", "dtype"} & set(values)


def edited(path, value):
    values = plain(tiny_config())
    *parents, name = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sted", 3, r"unknown field 'sted', did you mean .*steps"),
        ("optimizer.learning_rat", 1.0, r"unknown field 'learning_rat', did you mean learning_rate\? @ run.optimizer"),
        ("model.hiden_size", 8, r"hiden_size.*hidden_size"),
        ("steps", "many", r"'many' is not of type int @ run.steps"),
        ("compile", "false", r"'false' is not of type bool @ run.compile"),
        ("steps", 2.5, r"2.5 is not of type int"),
        ("optimizer.betas", [0.9], r"run.optimizer.betas"),
        ("batch_size", 0, r"batch_size is 0"),
        ("precision", "fp8", r"fp8"),
    ],
)
def test_what_is_unknown_or_of_the_wrong_type_is_refused_in_one_line(path, value, message):
    with pytest.raises(ValueError, match=message) as error:
        config_from_dict(edited(path, value))
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named():
    values = plain(tiny_config())
    del values["steps"]
    with pytest.raises(ValueError, match="field 'steps' is missing"):
        config_from_dict(values)


def test_whole_numbers_are_good_floats():
    assert config_from_dict(edited("optimizer.learning_rate", 1)).optimizer.learning_rate == 1.0


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        load_config(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"steps": ')
    with pytest.raises(ValueError, match=r"torn\.json cannot be read"):
        load_config(tmp_path / "torn.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json"):
        load_config(tmp_path / "list.json")
