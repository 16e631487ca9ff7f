"""A scale of the study at which every experiment takes a second."""

import multiprocessing
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from benchmarks.study import command, schedule
from benchmarks.study.scales import Scale
from ultramem.recipes.registry import with_model

# Divisible by all ranks, cores and expansions that the ladder tries.
TINY = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_experts": 8,
    "moe_intermediate_size": 8,
    "memory_key_size": 12,
    "memory_value_size": 16,
    "memory_top_k": 4,
}


@dataclass(frozen=True, kw_only=True)
class TinyScale(Scale):
    """The CPU's family with everything but the table's keys shrunk."""

    def fit(self, config, tokens, *, name=None, seed=0):
        fitted = super().fit(config, tokens, name=name, seed=seed)
        model = fitted.model
        keys = {} if model.memory is None else {"memory_num_keys": model.memory_num_keys // 8}
        if model.memory == "ultramem_v2":
            keys["memory_pre_value_size"] = 8
        return with_model(fitted, **TINY, **keys)


TINY_SCALE = TinyScale(
    name="tiny",
    family="cpu",
    tokens=256,
    learning_rates=(1e-3, 1e-2, 1e-1),
    batch_size=2,
    sequence_length=32,
    validation_tokens=64,
    step_milliseconds=dict.fromkeys(("dense", "moe", "pkm", "memory_plus", "ultramem", "ultramem_v2"), 10.0),
)


@pytest.fixture
def nothing_kept(monkeypatch, tmp_path_factory):
    """Makes results begin with nothing."""
    monkeypatch.setattr("benchmarks.study.results.Results.__init__.__defaults__", (tmp_path_factory.mktemp("kept"),))


@pytest.fixture
def tiny_scale(monkeypatch):
    """Makes `--scale tiny` one of the choices."""
    monkeypatch.setitem(command.SCALES, "tiny", TINY_SCALE)
    return TINY_SCALE


@pytest.fixture
def in_this_process(monkeypatch):
    """Makes runs where the test is, at once: a process takes seconds to begin."""

    def start(runs, side_by_side, gpu):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        # A pipe that nobody reads holds a row or two.
        thread = threading.Thread(target=schedule.train_and_send, args=(sender, runs, side_by_side))
        thread.start()
        return receiver, SimpleNamespace(join=thread.join, kill=lambda: None)

    monkeypatch.setattr(schedule, "start", start)
