import pytest
import torch

from ultramem.layers import PKMLayer, Table
from ultramem.layers.pkm import value_std
from ultramem.minimal import causal_conv, permutation, rms_norm

HIDDEN, KEYS = 16, 6


def make(value_size=HIDDEN, tables=1, **settings):
    torch.manual_seed(0)
    layer = PKMLayer(HIDDEN, num_keys=KEYS, key_size=8, value_size=value_size, top_k=4, seed=7, **settings).double()
    if layer.query.norm_weight is not None:  # away from constants, so that an exchanged one would be seen
        for weight in (layer.query.norm_weight, layer.retrieval.keys.norm_weight):
            weight.data.mul_(torch.rand_like(weight) + 0.5)
    return layer, Table(tables * KEYS**2, value_size, std=1.0).double()


def oracle(parameters, hidden, *, softmax, expansion, first_row):
    """Scores every slot, takes the best, gathers the rows."""
    keys, table = parameters["retrieval.keys.weight"][:, :, :, 0], parameters["weight"]
    convolved = (
        causal_conv(hidden, parameters["query.conv.weight"][:, 0]) if "query.conv.weight" in parameters else hidden
    )
    heads, _, num_keys, width = keys.shape
    query = (convolved @ parameters["query.proj.weight"].T).view(*hidden.shape[:2], -1, 2, width)
    if "query.norm_weight" in parameters:
        query = rms_norm(query, parameters["query.norm_weight"][0])
        keys = rms_norm(keys, parameters["retrieval.keys.norm_weight"][0])
    scores = torch.einsum("bthsd,hsnd->bthsn", query.expand(-1, -1, heads, -1, -1), keys)
    best = (scores[:, :, :, 0, :, None] + scores[:, :, :, 1, None, :]).flatten(3).topk(4)
    weights = best.values.softmax(-1) if softmax else best.values
    shuffled = permutation(num_keys, 7)[best.indices] if expansion > 1 else best.indices
    rows = table[(first_row + shuffled // expansion) % len(table)]
    groups = torch.eye(expansion, dtype=hidden.dtype)[shuffled % expansion]
    pooled = torch.einsum("bthm,bthmp,bthmv->btpv", weights, groups, rows).flatten(2)
    return pooled @ parameters["out_proj.weight"].T if "out_proj.weight" in parameters else pooled, best.indices


SETTINGS = [
    {},
    {"softmax": False},
    {"softmax": False, "value_size": 8},
    {"shared_query": True, "value_size": 8},
    {"qk_norm": True, "shared_query": True},
    {"expansion": 4, "value_size": 8, "softmax": False},
    {"query_conv_size": 3, "num_heads": 3},
    {"tables": 3, "window": 2, "first_row": 2 * KEYS**2, "softmax": False, "qk_norm": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_plain_einsum_in_output_and_every_gradient(settings):
    layer, table = make(**settings)
    hidden = torch.randn(2, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters()) | dict(table.named_parameters())
    ours = layer(hidden, table)
    theirs, slots = oracle(
        parameters,
        hidden,
        softmax=layer.softmax,
        expansion=layer.placement.expansion,
        first_row=layer.placement.first_row,
    )
    assert torch.equal(ours.slots, slots)
    assert ours.auxiliary_loss == 0
    torch.testing.assert_close(ours.hidden_states, theirs)
    direction = torch.randn_like(theirs)
    parameters["hidden"] = hidden
    for name, our, their in zip(
        parameters,
        torch.autograd.grad(ours.hidden_states, parameters.values(), direction),
        torch.autograd.grad(theirs, parameters.values(), direction),
        strict=True,
    ):
        assert their.any(), name
        torch.testing.assert_close(our, their, msg=lambda text, name=name: f"{name}: {text}")


def test_expansion_must_be_a_square():
    with pytest.raises(ValueError, match="expansion is 3"):
        make(expansion=3)


@pytest.mark.parametrize("settings", [{}, {"shared_query": True}, {"qk_norm": True}], ids=str)
def test_first_scores_of_keys_have_unit_variance(settings):
    torch.manual_seed(0)
    layer = PKMLayer(128, num_keys=100, key_size=64, value_size=64, top_k=8, **settings)
    query, keys = layer.query(torch.randn(2, 64, 128)), layer.retrieval.keys(query_weight=layer.query.norm_weight)
    scores = torch.einsum("nqsrd,hskrd->nqhsk", query, keys)
    assert scores.std().item() == pytest.approx(1, rel=0.05)
    assert layer.out_proj.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_values_start_as_published():
    table = Table(2000, 64, std=value_std(64))
    assert table.weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
