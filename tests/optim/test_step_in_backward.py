"""A table that steps inside the backward pass does what one does that steps after it."""

from copy import deepcopy

import pytest
import torch

from ultramem import Table, UltraMemLayer
from ultramem.optim import RowAdamW


def made(sparse=False):
    torch.manual_seed(0)
    layer = UltraMemLayer(16, num_keys=6, key_size=8, value_size=8, top_k=4)
    return layer, Table(36, 8, std=0.1, sparse=sparse)


def trained(layer, table, *, state, in_backward):
    """The weights and the optimizer's state after three steps, and the last gradient of the query's projection."""
    layer, table = deepcopy(layer), deepcopy(table)
    optimizer = RowAdamW(table.parameters(), lr=0.1, weight_decay=0.01, state=state)
    if in_backward:
        optimizer.step_in_backward(table)
    for step in range(3):
        hidden = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(step))
        layer.zero_grad()
        layer(hidden, table).hidden_states.square().sum().backward()
        assert (table.weight.grad is None) == in_backward
        optimizer.step()
        optimizer.zero_grad()
    return [table.weight.detach(), *optimizer.state[table.weight].values(), layer.query.proj.weight.grad]


@pytest.mark.parametrize("state", ["full", "small"])
@pytest.mark.parametrize("sparse", [False, True])
def test_it_is_the_step_after_the_backward_pass(state, sparse):
    layer, table = made(sparse)
    inside = trained(layer, table, state=state, in_backward=True)
    after = trained(layer, table, state=state, in_backward=False)
    for one, two in zip(inside, after, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_inference_and_frozen_moments_are_left_alone():
    layer, table = made()
    RowAdamW(table.parameters()).step_in_backward(table)
    before = table.weight.clone()
    with torch.no_grad():
        layer(torch.randn(2, 5, 16), table)
    assert torch.equal(table.weight, before)


def test_a_table_that_two_layers_read_is_refused_by_autograd():
    layer, table = made()
    RowAdamW(table.parameters()).step_in_backward(table)
    hidden = torch.randn(2, 5, 16)
    twice = layer(hidden, table).hidden_states + layer(hidden + 1, table).hidden_states
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        twice.sum().backward()


def test_a_table_of_another_optimizer_is_refused():
    _, table = made()
    with pytest.raises(ValueError, match="is not among this optimizer's parameters"):
        RowAdamW(made()[1].parameters()).step_in_backward(table)
