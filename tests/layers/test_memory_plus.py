import pytest
import torch

from ultramem.layers import MemoryPlusLayer, Table
from ultramem.minimal import causal_conv, rms_norm

HIDDEN, KEYS = 16, 6


def make(value_size=HIDDEN, tables=1, **settings):
    torch.manual_seed(0)
    layer = MemoryPlusLayer(HIDDEN, num_keys=KEYS, key_size=8, value_size=value_size, top_k=4, **settings).double()
    for weight in (layer.query.norm_weight, layer.retrieval.keys.norm_weight):
        weight.data.mul_(torch.rand_like(weight) + 0.5)
    return layer, Table(tables * KEYS**2, value_size, std=1.0).double()


def oracle(parameters, hidden, first_row):
    """Scores every slot, takes the best, gathers the rows."""
    keys, table = parameters["retrieval.keys.weight"][:, :, :, 0], parameters["weight"]
    convolved = (
        causal_conv(hidden, parameters["query.conv.weight"][:, 0]) if "query.conv.weight" in parameters else hidden
    )
    heads, _, _, width = keys.shape
    query = (convolved @ parameters["query.proj.weight"].T).view(*hidden.shape[:2], heads, 2, width)
    scores = torch.einsum(
        "bthsd,hsnd->bthsn",
        rms_norm(query, parameters["query.norm_weight"][0]),
        rms_norm(keys, parameters["retrieval.keys.norm_weight"][0]),
    )
    best = (scores[:, :, :, 0, :, None] + scores[:, :, :, 1, None, :]).flatten(3).topk(4)
    rows = table[(first_row + best.indices) % len(table)]
    pooled = torch.einsum("bthm,bthmv->btv", best.values.softmax(-1), rows)
    gate = hidden @ parameters["gate_proj.weight"].T
    return (pooled * gate * gate.sigmoid()) @ parameters["out_proj.weight"].T, best.indices


CASES = [
    dict(),
    dict(num_heads=3, value_size=10),
    dict(query_conv_size=3, num_heads=1),
    dict(tables=3, window=2, first_row=2 * KEYS**2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_plain_einsum_in_output_and_every_gradient(case):
    layer, table = make(**case)
    hidden = torch.randn(2, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters()) | dict(table.named_parameters())
    ours = layer(hidden, table)
    theirs, slots = oracle(parameters, hidden, layer.placement.first_row)
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


def test_the_norms_act():
    """Neither the length of the keys nor that of the input changes what is chosen, or how much it weighs."""
    layer, table = make()
    hidden = torch.randn(1, 4, HIDDEN, dtype=torch.float64)
    before = layer(hidden, table)
    with torch.no_grad():
        layer.retrieval.keys.weight.mul_(3)
        layer.query.proj.weight.mul_(5)
    after = layer(hidden, table)
    assert torch.equal(after.slots, before.slots)
    torch.testing.assert_close(after.scores, before.scores, rtol=1e-4, atol=0)


def test_it_starts_with_scores_of_unit_variance_and_projections_of_unit_gain():
    torch.manual_seed(0)
    layer = MemoryPlusLayer(128, num_keys=100, key_size=64, value_size=96, top_k=8)
    query, keys = layer.query(torch.randn(2, 64, 128)), layer.retrieval.keys(query_weight=layer.query.norm_weight)
    assert torch.einsum("nhsrd,hskrd->nhsk", query, keys).std().item() == pytest.approx(1, rel=0.05)
    assert layer.gate_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert layer.out_proj.weight.std().item() == pytest.approx(96**-0.5, rel=0.05)
