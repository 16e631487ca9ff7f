from math import sqrt

import pytest
import torch

from ultramem.layers import GatedTable, PEERLayer
from ultramem.layers.peer import ACTIVATIONS, expert_stds
from ultramem.minimal import causal_conv, rms_norm

HIDDEN, KEYS = 16, 6


def make(tables=1, **settings):
    torch.manual_seed(0)
    layer = PEERLayer(HIDDEN, num_keys=KEYS, key_size=8, top_k=4, **({"num_heads": 3} | settings)).double()
    return layer, GatedTable(tables * KEYS**2, pre_width=HIDDEN, width=HIDDEN, pre_std=0.5, std=1.0).double()


def oracle(parameters, hidden, first_row, activation):
    """Every expert's score, the best of every head, and their neurons one by one."""
    keys = parameters["retrieval.keys.weight"][0, :, :, 0]  # one set, (2, n, d)
    convolved = (
        causal_conv(hidden, parameters["query.conv.weight"][:, 0]) if "query.conv.weight" in parameters else hidden
    )
    query = (convolved @ parameters["query.proj.weight"].T).view(*hidden.shape[:2], -1, 2, keys.shape[-1])
    if "query.norm_weight" in parameters:
        query = rms_norm(query, parameters["query.norm_weight"][0])
        keys = rms_norm(keys, parameters["retrieval.keys.norm_weight"][0])
    scores = torch.einsum("bthsd,snd->bthsn", query, keys)
    best = (scores[:, :, :, 0, :, None] + scores[:, :, :, 1, None, :]).flatten(3).topk(4)
    down, up = parameters["pre_values.weight"], parameters["values.weight"]
    experts = (first_row + best.indices) % len(up)
    neurons = torch.einsum("bthmd,btd->bthm", down[experts], hidden)
    if activation == "gelu":
        neurons = neurons * 0.5 * (1 + torch.erf(neurons / sqrt(2)))
    elif activation == "relu":
        neurons = neurons.clamp(min=0)
    return torch.einsum("bthm,bthmd->btd", best.values.softmax(-1) * neurons, up[experts]), best.indices


CASES = [
    dict(),
    dict(activation=None, num_heads=1),
    dict(activation="relu", qk_norm=True),
    dict(query_conv_size=3, qk_norm=True),
    dict(tables=3, window=2, first_row=2 * KEYS**2, activation=None),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_plain_einsum_in_output_and_every_gradient(case):
    layer, table = make(**case)
    hidden = torch.randn(2, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters()) | dict(table.named_parameters())
    ours = layer(hidden, table)
    theirs, slots = oracle(parameters, hidden, layer.placement.first_row, layer.activation)
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("keys", "top_k", "heads"), [(64, 16, 8), (128, 32, 2)])
def test_initial_outputs_have_the_variance_of_a_branch(keys, top_k, heads, activation):
    torch.manual_seed(0)
    hidden_size, num_layers = 128, 12
    layer = PEERLayer(hidden_size, num_keys=keys, key_size=64, top_k=top_k, num_heads=heads, activation=activation)
    pre_std, std = expert_stds(hidden_size, top_k=top_k, num_heads=heads, num_layers=num_layers, activation=activation)
    table = GatedTable(keys**2, pre_width=hidden_size, width=hidden_size, pre_std=pre_std, std=std)
    output = layer(torch.randn(2, 64, hidden_size), table).hidden_states
    assert output.square().mean().sqrt().item() == pytest.approx(1 / sqrt(2 * num_layers), rel=0.15)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activations_mean_squares(activation):
    function, mean_square = ACTIVATIONS[activation]
    points = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    density = torch.exp(-points.square() / 2) / sqrt(2 * torch.pi)
    assert torch.trapezoid(function(points).square() * density, points).item() == pytest.approx(mean_square, abs=1e-4)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation is 'tanh': choose from gelu, relu, None"):
        make(activation="tanh")
