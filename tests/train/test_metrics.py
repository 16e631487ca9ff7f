import dataclasses
import math
from contextlib import nullcontext

import pytest
import torch

from tests.train.tiny import tiny_config
from ultramem.layers.memory import MemoryOutput
from ultramem.layers.pkm import PKMLayer
from ultramem.layers.tables import Table
from ultramem.layers.ultramem import UltraMemLayer
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.ops import physical_rows
from ultramem.train.metrics import MemoryHealth, validate


def test_health_is_what_one_counts_by_hand():
    torch.manual_seed(0)
    layer = UltraMemLayer(16, num_keys=12, key_size=8, value_size=8, top_k=4)
    table = Table(144, 8, std=0.1)
    outputs = [layer(torch.randn(2, length, 16), table) for length in (3, 7)]
    health = MemoryHealth(layer)
    for output in outputs:
        health.update(output)
    result = health.compute()

    counts = [0] * 144
    for output in outputs:
        for slot in output.slots.flatten().tolist():
            row, _ = physical_rows(torch.tensor(slot), *layer.placement)
            counts[row] += 1
    total = sum(counts)
    assert total == 20 * 2 * 4
    assert result["dead_rows"] == counts.count(0) > 0
    assert result["rows_read"] == pytest.approx(1 - counts.count(0) / 144)
    kl = sum(count / total * math.log(count / total * 144) for count in counts if count)
    assert result["kl_from_uniform"] == pytest.approx(kl)
    assert result["top_percent_share"] == pytest.approx(sum(sorted(counts)[-2:]) / total)
    best = torch.cat([output.scores.amax(dim=-1).flatten() for output in outputs])
    assert result["top_score"] == pytest.approx(best.mean().item(), rel=1e-5)
    values = torch.cat([output.hidden_states.flatten() for output in outputs])
    assert result["output_std"] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)
    exact = torch.linalg.svdvals(layer.retrieval.cores.sum(dim=1).detach())
    torch.testing.assert_close(torch.tensor(result["singular_values"]), exact)


def test_of_a_shared_table_a_layers_own_window_counts():
    torch.manual_seed(0)
    settings = {"num_keys": 5, "key_size": 8, "value_size": 8, "top_k": 4, "window": 4}
    first, last = UltraMemLayer(16, **settings), UltraMemLayer(16, **settings, first_row=75)
    last.load_state_dict(first.state_dict())
    table, hidden = Table(100, 8, std=0.1), torch.randn(2, 9, 16)
    results = []
    for layer in (first, last):
        health = MemoryHealth(layer)
        health.update(layer(hidden, table))
        results.append(health.compute())
    assert results[0]["dead_rows"] == results[1]["dead_rows"] > 0
    assert results[0]["rows_read"] == pytest.approx(1 - results[0]["dead_rows"] / 100)


@pytest.mark.parametrize(("slots", "kl", "read"), [(range(100), 0.0, 1.0), ([7] * 50, math.log(100), 0.01)])
def test_the_extremes_even_use_and_one_row_only(slots, kl, read):
    layer = PKMLayer(8, num_keys=10, key_size=4, value_size=8, top_k=2, num_heads=1)
    health = MemoryHealth(layer)
    slots = torch.tensor(list(slots)).view(1, -1, 1, 2)
    values = torch.ones(slots.shape).unsqueeze(-2)
    health.update(MemoryOutput(torch.ones(1, slots.shape[1], 8), torch.zeros(()), slots, values))
    result = health.compute()
    assert result["kl_from_uniform"] == pytest.approx(kl, abs=1e-12)
    assert result["rows_read"] == pytest.approx(read)
    assert result["top_percent_share"] == pytest.approx(0.01 if kl == 0 else 1.0)
    assert "singular_values" not in result


def test_validation_is_the_mean_over_tokens_without_dropout_and_leaves_the_mode():
    torch.manual_seed(0)
    model = UltraMemForCausalLM(tiny_config().model).train()
    windows = torch.randint(64, (5, 17))
    result = validate(model, windows.split(3), tokens_per_byte=0.25, autocast=nullcontext)
    assert model.training
    logits = model.eval()(windows).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()).item()
    assert result["validation_loss"] == pytest.approx(loss, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(loss / math.log(2) / 4, rel=1e-5)
    assert set(result["memory"]) == {"1:2"}


def test_a_model_without_memory_has_no_health():
    model = UltraMemForCausalLM(dataclasses.replace(tiny_config().model, memory=None, memory_units=[]))
    result = validate(model, [torch.randint(64, (2, 17))], tokens_per_byte=1.0, autocast=nullcontext)
    assert set(result) == {"validation_loss", "perplexity", "bits_per_byte"}
