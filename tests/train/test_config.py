import ast
import dataclasses
import inspect

import pytest

from tests.train.tiny import tiny_config
from ultramem.optim import Constant, Cosine, WarmupStableDecay
from ultramem.train import config
from ultramem.train.config import OptimizerConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"micro_batch_size": 5}, "micro_batch_size is 5: from 1 to batch_size, which is 4"),
        ({"precision": "fp8"}, "precision is 'fp8': choose fp32 or bf16"),
        ({"sequence_length": 33}, "sequence_length is 33: the model takes max_position_embeddings = 32"),
        ({"steps": 3}, "optimizer.warmup_steps is 4: the run has only 3 steps"),
        (
            {"steps": 9, "optimizer": OptimizerConfig(schedule="wsd", warmup_steps=4, decay_steps=6)},
            "optimizer.decay_steps is 6: a warm-up of 4 leaves 5 of the run's steps",
        ),
    ],
)
def test_an_impossible_run_is_refused_with_field_value_and_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate is 0.0: it must be above 0"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm is -1.0"),
        ({"table_weight_decay": -0.1}, "optimizer.table_weight_decay is -0.1: it cannot be negative"),
        ({"betas": (0.9, 1.0)}, r"optimizer.betas is \(0.9, 1.0\)"),
        ({"floor": 2.0}, "optimizer.floor is 2.0"),
        ({"lazy_share": 0.5}, "optimizer.lazy_share is 0.5: it says when lazy tables are stepped densely"),
        ({"schedule": "linear"}, "optimizer.schedule is 'linear': choose from constant, cosine, wsd"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps is -1"),
    ],
)
def test_an_impossible_optimizer_is_refused_with_field_value_and_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


def test_schedules_follow_the_length_of_the_run_where_nothing_is_said():
    assert OptimizerConfig().learning_rate_schedule(1000) == Cosine(total_steps=1000, warmup_steps=10, floor=0.1)
    assert OptimizerConfig(schedule="constant", warmup_steps=5).learning_rate_schedule(1000) == Constant(warmup_steps=5)
    stable = WarmupStableDecay(total_steps=1000, warmup_steps=10, decay_steps=200, floor=0.1)
    assert OptimizerConfig(schedule="wsd").learning_rate_schedule(1000) == stable
    assert OptimizerConfig().table_multiplier(1000).horizon_steps == 1000
    assert OptimizerConfig(table_horizon_steps=7).table_multiplier(1000).horizon_steps == 7


def test_every_field_of_a_run_has_its_help_text():
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            for field, following in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(following, ast.Expr), ast.unparse(field)


def test_a_variant_is_checked_again():
    with pytest.raises(ValueError, match="batch_size is 0"):
        dataclasses.replace(tiny_config(), batch_size=0)
    assert tiny_config().tokens_per_step == 64


@pytest.mark.parametrize("start", [1.0, 4.0])
def test_the_tables_learning_rate_may_be_the_trunks_or_fall_from_a_multiple(start):
    multiplier = OptimizerConfig(table_multiplier_start=start).table_multiplier(100)
    assert [multiplier(step) for step in (0, 50, 100, 1000)] == [start, (start + 1) / 2, 1.0, 1.0]
