import torch
from torch import nn

from ultramem.layers.tables import Table
from ultramem.layers.ultramem import UltraMemLayer
from ultramem.optim import parameter_groups


class Stranger(nn.Module):
    """A model that has nothing of ours but a layer and its table."""

    def __init__(self):
        super().__init__()
        self.layer = UltraMemLayer(16, num_keys=8, key_size=8, value_size=8, top_k=4)
        self.my_values = Table(64, 8, std=0.1)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)


def groups_of(model, **settings):
    groups = parameter_groups(model, **({"learning_rate": 1e-3, "weight_decay": 0.1} | settings))
    return {group["name"]: group for group in groups}


def test_every_parameter_is_in_exactly_one_group():
    model = Stranger()
    grouped = [id(parameter) for group in groups_of(model).values() for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_groups_are_told_apart_by_dimensions_and_by_class():
    model = Stranger()
    groups = groups_of(model, table_weight_decay=0.01, table_multiplier=10.0)
    assert [id(parameter) for parameter in groups["tables"]["params"]] == [id(model.my_values.weight)]
    assert (groups["tables"]["lr"], groups["tables"]["weight_decay"]) == (1e-2, 0.01)
    vectors = {id(parameter) for parameter in groups["vectors"]["params"]}
    assert {id(model.norm.weight), id(model.norm.bias), id(model.head.bias)} <= vectors
    calibrated = (
        model.layer.query.norm_weight,
        model.layer.query.conv.weight,
        model.layer.retrieval.keys.norm_weight,
        model.layer.retrieval.cores,
    )
    assert {id(parameter) for parameter in calibrated} <= vectors
    assert groups["vectors"]["weight_decay"] == 0
    matrices = {id(parameter) for parameter in groups["matrices"]["params"]}
    assert {id(model.head.weight), id(model.layer.retrieval.keys.weight)} <= matrices
    assert (groups["matrices"]["lr"], groups["matrices"]["weight_decay"]) == (1e-3, 0.1)


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = Stranger()
    model.my_values.requires_grad_(False)
    assert set(groups_of(model)) == {"matrices", "vectors"}


def test_a_shared_parameter_counts_once():
    model = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    model[1].weight = model[0].weight
    assert len(groups_of(model)["matrices"]["params"]) == 1


def test_any_optimizer_takes_them():
    optimizer = torch.optim.AdamW(parameter_groups(Stranger(), learning_rate=1e-3, weight_decay=0.1))
    assert len(optimizer.param_groups) == 3
