"""A table that steps in the backward pass, under a compiler."""

import pytest
import torch

from ultramem import Table, UltraMemLayer
from ultramem.optim import RowAdamW


def trained(compiling=None):
    torch.manual_seed(0)
    layer, table = UltraMemLayer(16, num_keys=6, key_size=8, value_size=8, top_k=4), Table(36, 8, std=0.1)
    optimizer = RowAdamW(table.parameters(), lr=0.1, state="small")
    optimizer.step_in_backward(table)
    run = layer if compiling is None else torch.compile(layer, backend="eager", **compiling)
    for step in range(2):
        hidden = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(step))
        layer.zero_grad()
        run(hidden, table).hidden_states.square().sum().backward()
    return table.weight.detach(), layer.query.proj.weight.grad


def test_compiled_in_parts_it_is_the_plain_one():
    for ours, plain in zip(trained({"fullgraph": False}), trained(), strict=True):
        assert torch.equal(ours, plain)


def test_one_graph_is_refused():
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        trained({"fullgraph": True})
