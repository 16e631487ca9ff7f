"""The training benchmarks run, at a tiny size on a CPU: what they time and profile is the step that is taken."""

import pytest
import torch

from benchmarks.training_profile import VARIANTS, measure
from benchmarks.training_step import PARTS, TrainingStep

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
TINY_MEMORY = TINY | {
    "memory_units": ["1:2"],
    "memory_num_keys": 8,
    "memory_key_size": 16,
    "memory_value_size": 16,
    "memory_top_k": 4,
}


@pytest.fixture(autouse=True)
def short_sequences(monkeypatch):
    for name, variant in VARIANTS.items():
        monkeypatch.setitem(VARIANTS, name, variant._replace(length=16))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_profile_tells_the_parts_of_a_step_and_what_took_longest(name):
    sizes = TINY_MEMORY if name.startswith("ultramem") else TINY
    row, kernels = measure(name, compiled=False, tokens=32, steps=1, device="cpu", **sizes)
    assert row["tokens"] == 32
    assert sum(row[f"{part}_ms"] for part in PARTS) == pytest.approx(row["step_ms"])
    assert {kernel["part"] for kernel in kernels} == set(PARTS)
    names = {part: {kernel["kernel"] for kernel in kernels if kernel["part"] == part} for part in PARTS}
    assert "aten::mm" in names["forward"]
    assert all(row[f"{part}_launches"] > 0 for part in PARTS)
    times = [kernel["milliseconds"] for kernel in kernels if kernel["part"] == "backward"]
    assert times == sorted(times, reverse=True)
    assert row["kernels_ms"] >= sum(times)


def test_a_step_in_parts_learns_and_is_the_same_when_timed():
    variant = VARIANTS["ultramem-25m"]
    steps = [
        TrainingStep(variant, variant.config(**TINY_MEMORY), batch=2, compiled=False, device="cpu") for _ in range(2)
    ]
    steps[1].tokens = steps[0].tokens
    taken = [steps[0].take() for _ in range(3)]
    timed = []
    for _ in range(3):
        assert set(steps[1].milliseconds()) == {"step", *PARTS}
        timed.append(steps[1].loss.item())
    assert timed == taken
    assert taken[2] < taken[0]


def test_a_loss_that_is_no_number_ends_the_benchmark():
    variant = VARIANTS["dense-25m"]
    step = TrainingStep(variant, variant.config(**TINY), batch=2, compiled=False, device="cpu")
    with torch.no_grad():
        step.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(SystemExit, match="not a number"):
        step.take()
