import pytest

from ultramem import recipes
from ultramem.recipes.registry import Registry, with_model
from ultramem.train.config_json import config_from_dict, config_to_dict


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid_named_described_and_survives_json(name):
    config = recipes.get(name)
    assert config.name == name
    assert recipes.describe(name).endswith(".")
    assert config_to_dict(config_from_dict(config_to_dict(config))) == config_to_dict(config)


def test_a_recipe_is_built_anew_for_every_caller():
    recipes.get("cpu-dense").model.vocab_size = 7
    assert recipes.get("cpu-dense").model.vocab_size == 4096


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"'cpu-ultramm' does not exist.*cpu-ultramem"):
        recipes.get("cpu-ultramm")


def test_a_name_like_no_other_is_answered_too():
    with pytest.raises(ValueError, match="ultramem info"):
        recipes.get("zzz")


def test_what_follows_from_a_changed_field_follows():
    config = recipes.get("cpu-dense")
    assert config.model.head_dim == 32
    assert with_model(config, num_attention_heads=8).model.head_dim == 16
    assert with_model(config, num_attention_heads=8).model.num_key_value_heads == 8


def test_what_was_chosen_stays():
    config = with_model(recipes.get("cpu-dense"), head_dim=64)
    assert with_model(config, num_attention_heads=8).model.head_dim == 64


def test_two_recipes_cannot_share_a_name():
    registry = Registry()
    registry.add("a")(lambda: recipes.get("cpu-dense"))
    with pytest.raises(AssertionError):
        registry.add("a")(lambda: recipes.get("cpu-dense"))
