import pytest
import torch

from ultramem import ops
from ultramem.layers import PKMLayer, Table

HIDDEN, KEYS = 16, 6


def make(value_size=HIDDEN, **settings):
    torch.manual_seed(0)
    layer = PKMLayer(HIDDEN, num_keys=KEYS, key_size=8, value_size=value_size, top_k=4, **settings).double()
    return layer, Table(KEYS * KEYS, value_size, std=1.0, dtype=torch.float64)


def oracle(layer, table, hidden):
    """Scores every slot, takes the best, gathers the rows."""
    query, keys = layer.query(hidden), layer.retrieval.keys(query_weight=layer.query.norm_weight)
    row, column = (torch.einsum("nqd,hkd->nqhk", query[:, :, s, 0], keys[:, s, :, 0]) for s in (0, 1))
    pick = torch.arange(keys.shape[0])
    shared = query.shape[1] == 1
    row, column = (scores[:, 0] if shared else scores[:, pick, pick] for scores in (row, column))
    best = (row[..., :, None] + column[..., None, :]).flatten(2).topk(4)
    weights = best.values.softmax(-1) if layer.softmax else best.values
    rows, groups = ops.physical_rows(best.indices, *layer.placement)
    expand = torch.eye(layer.placement.expansion, dtype=hidden.dtype)[groups]
    pooled = torch.einsum("nhk,nhkp,nhkv->npv", weights, expand, table.weight[rows])
    return layer.out_proj(pooled.flatten(1)).view(hidden.shape)


SETTINGS = [
    {},
    {"softmax": False},
    {"softmax": False, "value_size": 8},
    {"shared_query": True, "value_size": 8},
    {"qk_norm": True, "shared_query": True},
    {"expansion": 4, "value_size": 8, "softmax": False},
    {"query_conv_size": 3, "num_heads": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_brute_force_in_output_and_every_gradient(settings):
    layer, table = make(**settings)
    hidden = torch.randn(2, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters()) | {"table": table.weight, "hidden": hidden}
    ours, theirs = layer(hidden, table).hidden_states, oracle(layer, table, hidden)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(theirs)
    for name, our, their in zip(
        parameters,
        torch.autograd.grad(ours, parameters.values(), direction),
        torch.autograd.grad(theirs, parameters.values(), direction),
        strict=True,
    ):
        assert their.any(), name
        torch.testing.assert_close(our, their, msg=lambda text, name=name: f"{name}: {text}")


def test_expansion_must_be_a_square():
    with pytest.raises(ValueError, match="expansion is 3"):
        make(expansion=3)
