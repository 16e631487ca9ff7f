"""The loss apart from what can be copied."""

from contextlib import nullcontext

import pytest
import torch

from benchmarks.study import copies
from benchmarks.study.copies import loss_of_new_tokens, losses_apart, repeats
from benchmarks.study.run import train_and_measure
from tests.conftest import tiny
from ultramem.models.modeling_ultramem import UltraMemForCausalLM


def test_a_token_repeats_where_its_trigram_stood_before():
    torch.manual_seed(0)
    tokens = torch.randint(3, (4, 40))
    for row, found in zip(tokens.tolist(), repeats(tokens).tolist(), strict=True):
        trigrams = list(zip(row, row[1:], row[2:], strict=False))
        assert found == [False, False, *(trigram in trigrams[:place] for place, trigram in enumerate(trigrams))]


def test_the_losses_of_both_kinds_make_that_of_all():
    torch.manual_seed(0)
    model = UltraMemForCausalLM(tiny("cpu-ultramem").model)
    windows = torch.randint(4, (6, 17))
    logits = model.eval()(input_ids=windows).logits[:, :-1].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten(), reduction="none")
    repeated = repeats(windows)[:, 1:].flatten()
    model.train()
    new_loss, new_share = loss_of_new_tokens(model, windows.split(2), nullcontext)
    assert model.training
    assert new_share == pytest.approx(1 - repeated.float().mean().item())
    assert new_loss == pytest.approx(losses[~repeated].mean().item(), rel=1e-5)
    apart = losses_apart(losses.mean().item(), new_loss, new_share)
    assert apart["repeated_loss"] == pytest.approx(losses[repeated].mean().item(), rel=1e-4)
    assert losses_apart(3.0, 3.0, 1.0) == {"new_loss": 3.0, "repeated_loss": None, "repeated_share": 0.0}


def test_a_run_says_both(prepared, tiny_scale):
    row = train_and_measure(tiny_scale.fit(tiny_scale.recipe("moe"), 64 * 4), prepared)
    assert row["validation"][-1]["new_loss"] == row["new_loss"]
    assert 0 < row["repeated_share"] < 1
    assert row["repeated_loss"] > 0


def test_a_run_measures_both_on_the_tokens_of_its_validation(prepared, tiny_scale, monkeypatch):
    monkeypatch.setattr(copies, "repeats", lambda tokens: torch.zeros_like(tokens, dtype=torch.bool))
    row = train_and_measure(tiny_scale.fit(tiny_scale.recipe("ultramem"), 64 * 4), prepared)
    assert row["new_loss"] == pytest.approx(row["validation_loss"], rel=1e-6)
    assert (row["repeated_loss"], row["repeated_share"]) == (None, 0.0)
