"""Runs side by side: order, time, interruption, failure."""

import multiprocessing
import os
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.study import plan, schedule
from benchmarks.study.results import Results
from benchmarks.study.schedule import Wanted, make
from tests.conftest import tiny


class World:
    """Runs that take the seconds that a test says, on a clock of its own."""

    def __init__(self, monkeypatch, takes):
        self.now, self.takes = 0.0, takes
        self.under_way = {}
        self.begun, self.killed = [], []
        monkeypatch.setattr(schedule, "START_SECONDS", 0.0)
        monkeypatch.setattr(schedule, "start", self.start)
        monkeypatch.setattr(schedule, "wait", self.wait)
        monkeypatch.setattr(schedule.time, "monotonic", lambda: self.now)

    def start(self, run, side_by_side):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        name = run.config.name
        self.under_way[receiver] = (self.now + self.takes[name], sender, run, side_by_side)
        self.begun.append((name, self.now))
        return receiver, SimpleNamespace(kill=lambda: self.killed.append(name), join=lambda: None)

    def wait(self, receivers, timeout):
        ends, receiver = min((self.under_way[receiver][0], number) for number, receiver in enumerate(receivers))
        if timeout is not None and ends > self.now + timeout:
            self.now += timeout
            return []
        receiver = receivers[receiver]
        self.now = ends
        _, sender, run, side_by_side = self.under_way.pop(receiver)
        if self.takes[run.config.name] == 13:
            sender.send("ValueError: unlucky")
        else:
            sender.send({"name": run.config.name, "seed": 0, "validation_loss": 3.0, "tokens": 1, "seconds_per_step": 1,
                         "settings": schedule_settings(run.config), "side_by_side": side_by_side})  # fmt: skip
        return [receiver]


def schedule_settings(config):
    from ultramem.train.config_json import config_to_dict

    return config_to_dict(config)


@pytest.fixture
def results(tmp_path):
    return Results("some", tmp_path / "out", tmp_path / "none")


def runs(results, **seconds):
    """Runs of these names and predicted seconds, those named alone_… alone."""

    def wanted():
        configs = [replace(tiny("cpu-dense"), name=name) for name in seconds]
        for config in results.missing(configs):
            yield Wanted(results, config, None, seconds[config.name], {}, alone=config.name.startswith("alone"))

    return wanted


def test_as_many_as_may_are_under_way_and_each_is_kept(monkeypatch, results):
    world = World(monkeypatch, {"a": 5, "b": 2, "c": 4})
    assert make(runs(results, a=1, b=1, c=1), side_by_side=2)
    assert world.begun == [("a", 0), ("b", 0), ("c", 2)]
    assert [row["name"] for row in results.rows()] == ["b", "a", "c"]


def test_a_run_that_is_to_be_alone_waits_and_lets_others_wait(monkeypatch, results):
    world = World(monkeypatch, {"a": 5, "alone_b": 2, "c": 4})
    assert make(runs(results, a=1, alone_b=1, c=1), side_by_side=2)
    assert world.begun == [("a", 0), ("alone_b", 5), ("c", 7)]
    assert [row["side_by_side"] for row in results.rows()] == [2, 1, 2]


def test_what_cannot_end_in_time_is_not_begun_and_the_next_call_goes_on(monkeypatch, results, capsys):
    world = World(monkeypatch, {"a": 5, "b": 5, "c": 2})
    assert not make(runs(results, a=5, b=5, c=2), seconds=8)
    assert world.begun == [("a", 0), ("c", 5)]
    assert "goes on with some b, seed 0" in capsys.readouterr().out
    assert make(runs(results, a=5, b=5, c=2), seconds=8)
    assert [row["name"] for row in results.rows()] == ["a", "c", "b"]


def test_side_by_side_steps_take_longer_but_not_the_start(monkeypatch, results):
    world = World(monkeypatch, {"a": 10, "b": 10})
    monkeypatch.setattr(schedule, "START_SECONDS", 4.0)
    assert not make(runs(results, a=3, b=3), side_by_side=2, seconds=9)
    assert make(runs(results, a=3, b=3), side_by_side=2, seconds=10)
    assert world.begun == [("a", 0), ("b", 0)]


def test_predictions_are_mended_by_the_runs_before(monkeypatch, results):
    world = World(monkeypatch, {"a": 10, "b": 10})
    assert not make(runs(results, a=5, b=5), seconds=16)
    assert world.begun == [("a", 0)]


def test_what_outlasts_the_time_is_killed_and_leaves_nothing(monkeypatch, results, capsys):
    world = World(monkeypatch, {"a": 2, "b": 50})
    assert not make(runs(results, a=2, b=2), side_by_side=2, seconds=6)
    assert world.killed == ["b"]
    assert world.now == 6
    assert "given up: some b, seed 0" in capsys.readouterr().out
    assert [row["name"] for row in results.rows()] == ["a"]


def test_a_failed_run_does_not_stop_the_others(monkeypatch, results, capsys):
    World(monkeypatch, {"a": 13, "b": 2})
    assert not make(runs(results, a=2, b=2))
    assert "some a, seed 0 failed: ValueError: unlucky" in capsys.readouterr().out
    assert [row["name"] for row in results.rows()] == ["b"]


@pytest.mark.slow
def test_runs_take_place_in_processes_of_their_own(prepared, results, capsys):
    """Two at a time; the third has no data."""
    short = replace(tiny("cpu-ultramem"), steps=2)
    configs = [short, replace(short, seed=1), replace(short, seed=2)]

    def wanted():
        for config in results.missing(configs):
            data = prepared if config.seed < 2 else prepared / "none"
            yield Wanted(results, config, data, 1.0, {"scale": "tiny"})

    assert not make(wanted, side_by_side=2)
    assert sorted((row["seed"], row["scale"], row["side_by_side"]) for row in results.rows()) == [
        (0, "tiny", 2),
        (1, "tiny", 2),
    ]
    assert "seed 2 failed: Traceback" in capsys.readouterr().out


ENDLESS = """
import sys
from dataclasses import replace
from pathlib import Path
from benchmarks.study.results import Results
from benchmarks.study.schedule import Wanted, make
from tests.conftest import tiny

if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:])
    config = replace(tiny("cpu-dense"), steps=10**6, evaluate_every_steps=10**6)
    make(lambda: [Wanted(Results("some", out, out), config, data, 1.0, {})])
"""


@pytest.mark.slow
def test_runs_end_with_the_command_however_it_ends(prepared, tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = subprocess.Popen([sys.executable, str(script), str(prepared), str(tmp_path / "out")], env=environment)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    while not (found := [int(pid) for pid in children.read_text().split() if _trains(int(pid))]):
        time.sleep(0.1)
    command.kill()
    command.wait()
    while any(_trains(pid) for pid in found):
        time.sleep(0.1)


def _trains(pid):
    try:
        return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_killed_process_is_said_and_its_run_is_lacking(monkeypatch, results, capsys):
    def start(run, side_by_side):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        sender.close()
        return receiver, SimpleNamespace(join=lambda: None)

    monkeypatch.setattr(schedule, "start", start)
    assert not make(runs(results, a=1))
    assert "some a, seed 0 failed: its process was killed" in capsys.readouterr().out
    assert results.rows() == []


def given(tmp_path):
    return Namespace(data=tmp_path / "data", out=tmp_path / "out", people=tmp_path / "people", quiz=None)


def test_nothing_that_takes_its_rates_from_the_sweep_is_wanted_before_it_has_ended(tmp_path):
    wanted = [run.results.path.stem for run in plan.wanted(given(tmp_path), lambda: pytest.fail("too early"))]
    assert list(dict.fromkeys(wanted)) == ["ladder", "learning_rates"]


def test_afterwards_all_else_is_wanted_and_biographies_are_waited_for(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(plan.learning_rates, "runs", lambda *_: [])
    wanted = [run.results.path.stem for run in plan.wanted(given(tmp_path), lambda: told.append(True))]
    assert list(dict.fromkeys(wanted)) == ["ladder", "equal_compute", "table_size", "dense_equivalent", "knowledge"]
    assert told
    alone = [run for run in plan.after_the_rates(given(tmp_path), bool) if run.alone]
    assert [run.config.name for run in alone] == [f"gpu-15m-{name}" for name in ("dense", "moe", "ultramem", "pkm")]
    assert {run.config.seed for run in alone} == {0}


def test_the_list_counts_every_run_once(tmp_path, capsys):
    plan.main(["--data", "none", "--people", "none", "--out", str(tmp_path), "--list"])
    lines = capsys.readouterr().out.splitlines()
    (equal_compute,) = [line for line in lines if line.startswith("equal_compute")]
    assert equal_compute.split()[1:3] == ["21", "runs"]
    assert lines[-1].endswith("s in all, one after another")
