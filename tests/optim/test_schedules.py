import math

import pytest
import torch

from ultramem.optim import Constant, Cosine, TableMultiplier, WarmupStableDecay

SCHEDULES = [
    Constant(warmup_steps=10),
    Cosine(total_steps=100, warmup_steps=10, floor=0.1),
    WarmupStableDecay(total_steps=100, warmup_steps=10, decay_steps=20, floor=0.1),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_never_zero(schedule):
    assert [schedule(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_falls_from_one_to_the_floor_at_the_last_step_and_stays_there(schedule):
    values = [schedule(step) for step in range(9, 100)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1
    assert values[-1] == pytest.approx(0.1)
    assert schedule(1000) == pytest.approx(0.1)


def test_cosine_is_half_way_in_the_middle():
    assert Cosine(total_steps=100, floor=0.0)(49) == pytest.approx(0.5)
    assert Cosine(total_steps=100, floor=0.2)(24) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_the_stable_part_does_not_depend_on_the_length():
    short, long = (WarmupStableDecay(total_steps=n, warmup_steps=5, decay_steps=10) for n in (50, 500))
    assert [short(step) for step in range(40)] == [long(step) for step in range(40)]
    assert short(40) < long(40) == 1


def test_without_warm_up_or_decay_nothing_moves():
    assert Constant()(0) == 1
    assert WarmupStableDecay(total_steps=10, decay_steps=0)(9) == 1


def test_tables_multiplier_falls_linearly_from_step_zero_to_its_horizon():
    multiplier = TableMultiplier(horizon_steps=4)
    assert [multiplier(step) for step in range(6)] == [10.0, 7.75, 5.5, 3.25, 1.0, 1.0]
    assert TableMultiplier(horizon_steps=0)(0) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_torchs_scheduler_takes_them_as_they_are(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for step in range(30):
        assert optimizer.param_groups[0]["lr"] == 0.5 * schedule(step)
        optimizer.step()
        scheduler.step()
