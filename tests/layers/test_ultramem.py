from math import sqrt

import pytest
import torch

from ultramem.layers import Table, UltraMemLayer
from ultramem.layers.ultramem import value_std
from ultramem.minimal import ultramem as minimal

HIDDEN, KEYS, VALUE = 24, 6, 24


def make_layer(heads=2, rank=2, cores=2, expansion=4, top_k=5, conv=4, key_size=24):
    torch.manual_seed(0)
    layer = UltraMemLayer(
        HIDDEN,
        num_keys=KEYS,
        key_size=key_size,
        value_size=VALUE,
        top_k=top_k,
        num_heads=heads,
        tucker_rank=rank,
        num_cores=cores,
        expansion=expansion,
        query_conv_size=conv,
        tucker_margin=0.01,
        seed=7,
    )
    # Norm weights away from constants, so that a transposed one would be seen.
    for weight in (layer.query.norm_weight, layer.retrieval.keys.norm_weight):
        weight.data.mul_(torch.rand_like(weight) + 0.5)
    return layer, Table(KEYS * KEYS, VALUE, std=1.0)


CASES = [
    dict(),
    dict(heads=1, rank=1, cores=1, expansion=1),
    dict(heads=3, rank=3, cores=4, expansion=9, top_k=7),
    dict(rank=4, cores=3, expansion=4, top_k=9),
    dict(rank=2, cores=1, expansion=16, top_k=1),
    dict(expansion=1, top_k=6),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_minimal_layer_in_output_and_every_gradient(case):
    layer, table = make_layer(**case)
    layer.double(), table.double()
    layer.retrieval.refresh()
    hidden = torch.randn(2, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters()) | {"table": table.weight, "hidden": hidden}

    ours = layer(hidden, table)
    theirs, auxiliary_loss, slots = minimal(
        hidden,
        parameters["query.conv.weight"][:, 0],
        parameters["query.proj.weight"],
        parameters["query.norm_weight"],
        parameters["retrieval.keys.weight"],
        parameters["retrieval.keys.norm_weight"],
        parameters["retrieval.cores"],
        table.weight,
        parameters["out_proj.weight"],
        top_m=layer.retrieval.top_k,
        seed=7,
        tau=0.01,
    )

    assert torch.equal(ours.slots, slots)
    torch.testing.assert_close(ours.hidden_states, theirs)
    torch.testing.assert_close(ours.auxiliary_loss.double(), auxiliary_loss, rtol=1e-5, atol=1e-12)
    direction = torch.randn_like(theirs)
    our_gradients = torch.autograd.grad(
        (ours.hidden_states * direction).sum() + ours.auxiliary_loss, parameters.values(), materialize_grads=True
    )
    their_gradients = torch.autograd.grad((theirs * direction).sum() + auxiliary_loss, parameters.values())
    for name, our, their in zip(parameters, our_gradients, their_gradients, strict=True):
        assert their.any(), f"{name}: the oracle's gradient is zero"
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("keys", "top_k", "heads", "rank", "cores", "expansion"),
    [(100, 16, 2, 2, 2, 4), (250, 32, 1, 2, 1, 4), (128, 42, 2, 3, 2, 1), (64, 8, 3, 1, 1, 9)],
)
def test_initial_scores_average_one_and_outputs_have_the_promised_variance(keys, top_k, heads, rank, cores, expansion):
    torch.manual_seed(0)
    num_layers = 12
    layer = UltraMemLayer(
        192,
        num_keys=keys,
        key_size=96,
        value_size=96,
        top_k=top_k,
        num_heads=heads,
        tucker_rank=rank,
        num_cores=cores,
        expansion=expansion,
    )
    std = value_std(expansion=expansion, top_k=top_k, num_heads=heads, num_layers=num_layers)
    hidden = torch.randn(2, 128, 192)
    values, _ = layer.retrieval(layer.query(hidden), layer.query.norm_weight)
    output = layer(hidden, Table(keys**2, 96, std=std)).hidden_states
    assert values.mean().item() == pytest.approx(1, rel=0.10)
    assert output.std().item() == pytest.approx(1 / sqrt(2 * num_layers), rel=0.15)


def test_convolution_state_continues_a_sequence():
    layer, table = make_layer()
    hidden = torch.randn(2, 9, HIDDEN)
    whole = layer(hidden, table).hidden_states
    pieces = [
        layer(hidden[:, start:stop], table, context=hidden[:, max(0, start - 3) : start]).hidden_states
        for start, stop in [(0, 1), (1, 2), (2, 6), (6, 7), (7, 9)]
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_reads_a_sparse_table_like_a_dense_one():
    layer, table = make_layer()
    sparse_table = Table(KEYS * KEYS, VALUE, std=1.0, sparse=True)
    sparse_table.load_state_dict(table.state_dict())
    hidden = torch.randn(1, 2, HIDDEN)
    layer(hidden, table).hidden_states.square().sum().backward()
    layer(hidden, sparse_table).hidden_states.square().sum().backward()
    assert sparse_table.weight.grad.is_sparse
    assert sparse_table.weight.grad._nnz() < KEYS * KEYS
    torch.testing.assert_close(sparse_table.weight.grad.to_dense(), table.weight.grad)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(expansion=8), "expansion is 8"),
        (dict(rank=5), "key_size 24"),
        (dict(cores=5), "value_size 24"),
        (dict(top_k=145), "top_k is 145"),
        (dict(top_k=0), "top_k is 0"),
    ],
)
def test_impossible_sizes_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        make_layer(**change)


def test_a_table_that_is_too_small_is_named():
    layer, _ = make_layer()
    with pytest.raises(ValueError, match="table has 35 rows"):
        layer(torch.randn(1, 2, HIDDEN), Table(35, VALUE, std=1.0))
