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
from benchmarks.study.schedule import Wanted, by_model, make
from tests.conftest import tiny
from ultramem import recipes

pytestmark = pytest.mark.usefixtures("nothing_kept")


class World:
    """Runs that take the seconds that a test says, on a clock of its own."""

    def __init__(self, monkeypatch, takes, gpus=()):
        self.now, self.takes = 0.0, takes
        self.gpu_of = {}
        self.under_way = {}
        self.begun, self.killed = [], []
        monkeypatch.setattr(schedule, "visible_gpus", lambda: [*gpus])
        monkeypatch.setattr(schedule, "START_SECONDS", 0.0)
        monkeypatch.setattr(schedule, "start", self.start)
        monkeypatch.setattr(schedule, "wait", self.wait)
        monkeypatch.setattr(schedule.time, "monotonic", lambda: self.now)

    def start(self, runs, side_by_side, gpu):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        names = [run.config.name for run in runs]
        self.gpu_of[names[0]] = gpu
        self.under_way[receiver] = (self.now + self.takes[names[0]], sender, [*runs], side_by_side)
        self.begun.append((*names, self.now))
        return receiver, SimpleNamespace(kill=lambda: self.killed.append(names[0]), join=lambda: None)

    def wait(self, receivers, timeout):
        ends, receiver = min((self.under_way[receiver][0], number) for number, receiver in enumerate(receivers))
        if timeout is not None and ends > self.now + timeout:
            self.now += timeout
            return []
        receiver = receivers[receiver]
        self.now = ends
        _, sender, (run, *others), side_by_side = self.under_way.pop(receiver)
        if others:
            self.under_way[receiver] = (ends + self.takes[others[0].config.name], sender, others, side_by_side)
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
    """Runs of these names and predicted seconds, each of another model."""

    def wanted():
        configs = [
            replace(tiny("cpu-dense"), name=name, sequence_length=8 * (1 + list(seconds).index(name)))
            for name in seconds
        ]
        return [[Wanted(results, config, None, seconds[config.name], {})] for config in results.missing(configs)]

    return wanted


def of_two_models(results, **seconds):
    """As `runs`, but that all models are one except for b's."""

    def wanted():
        configs = [replace(tiny("cpu-dense"), name=name, batch_size=2 if name == "b" else 4) for name in seconds]
        return by_model(Wanted(results, config, None, seconds[config.name], {}) for config in results.missing(configs))

    return wanted


def test_as_many_as_may_are_under_way_and_each_is_kept(monkeypatch, results):
    world = World(monkeypatch, {"a": 5, "b": 2, "c": 4})
    assert make(runs(results, a=1, b=1, c=1), side_by_side=2)
    assert world.begun == [("a", 0), ("b", 0), ("c", 2)]
    assert [row["name"] for row in results.rows()] == ["b", "a", "c"]


def test_each_gpu_has_as_many_and_a_run_takes_the_freest(monkeypatch, results):
    world = World(monkeypatch, {"a": 5, "b": 2, "c": 4, "d": 5, "e": 1}, gpus=["2", "5"])
    assert make(runs(results, a=1, b=1, c=1, d=1, e=1), side_by_side=2)
    assert world.begun == [("a", 0), ("b", 0), ("c", 0), ("d", 0), ("e", 2)]
    assert world.gpu_of == {"a": "2", "b": "5", "c": "2", "d": "5", "e": "5"}
    assert {row["side_by_side"] for row in results.rows()} == {4}, "they share a host"


def test_the_gpus_are_those_that_the_environment_names(monkeypatch):
    monkeypatch.setattr(schedule.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1")
    assert schedule.visible_gpus() == ["3", "1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert schedule.visible_gpus() == ["0", "1"]
    monkeypatch.setattr(schedule.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert schedule.visible_gpus() == []


def test_a_process_sees_its_gpu_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = []
    monkeypatch.setattr(schedule, "_end_with_parent", lambda: None)
    monkeypatch.setattr(schedule, "train_and_send", lambda *_: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    for gpu in (None, "1"):
        schedule._train_while_wanted(None, [], 2, gpu)
    assert seen == ["0,1", "1"]


def test_runs_of_one_model_follow_each_other_in_one_process(monkeypatch, results):
    world = World(monkeypatch, {"a": 5, "b": 2, "c": 4})
    wanted = of_two_models(results, a=1, b=1, c=1)
    assert [[run.config.name for run in runs] for runs in wanted()] == [["a", "c"], ["b"]]
    assert make(wanted, side_by_side=2)
    assert world.begun == [("a", "c", 0), ("b", 0)]
    assert [row["name"] for row in results.rows()] == ["b", "a", "c"]


def test_a_process_takes_no_more_runs_than_end_in_time(monkeypatch, results):
    world = World(monkeypatch, {"a": 5, "b": 2, "c": 4})
    monkeypatch.setattr(schedule, "START_SECONDS", 3.0)
    assert not make(of_two_models(results, a=2, b=1, c=4), seconds=8)
    assert world.begun == [("a", 0)]
    assert make(of_two_models(results, a=2, b=1, c=1), seconds=20)


def test_after_a_failure_its_model_is_left_out(monkeypatch, results, capsys):
    world = World(monkeypatch, {"a": 13, "b": 2, "c": 4})
    assert not make(of_two_models(results, a=1, b=1, c=1))
    assert world.begun == [("a", "c", 0), ("b", 13)]
    assert "all there but for the models that failed: some a, seed 0" in capsys.readouterr().out


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
    """Two at a time; one makes two runs, the other has no data."""
    short = replace(tiny("cpu-ultramem"), steps=2)
    configs = [short, replace(short, seed=1), replace(short, seed=2, batch_size=2 * short.batch_size)]

    def wanted():
        return by_model(
            Wanted(results, config, prepared if config.seed < 2 else prepared / "none", 1.0, {"scale": "tiny"})
            for config in results.missing(configs)
        )

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
from benchmarks.study.schedule import Wanted, by_model, make
from tests.conftest import tiny

if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:])
    config = replace(tiny("cpu-dense"), steps=10**6, evaluate_every_steps=10**6)
    make(lambda: [[Wanted(Results("some", out, out), config, data, 1.0, {})]])
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
    def start(runs, side_by_side, gpu):
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
    wanted = [runs[0].results.path.stem for runs in plan.wanted(given(tmp_path), lambda: True)]
    assert [*dict.fromkeys(wanted)] == ["ladder", "learning_rates", "knowledge"]


def test_a_model_whose_rates_are_swept_waits_for_no_other(tmp_path, monkeypatch):
    moe = recipes.get("gpu-25m-moe")
    monkeypatch.setattr(plan.learning_rates, "runs", lambda *_: [moe])
    wanted = [*plan.wanted(given(tmp_path), lambda: True)]
    of_equal_compute = {run.config.name for runs in wanted for run in runs if run.results.path.stem == "equal_compute"}
    assert of_equal_compute == {f"gpu-25m-{name}" for name in plan.equal_compute.RIVALS if name != "moe"}


def test_afterwards_all_else_is_wanted_but_biographies_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(plan.learning_rates, "runs", lambda *_: [])
    wanted = [*plan.wanted(given(tmp_path), lambda: True)]
    experiments = dict.fromkeys(runs[0].results.path.stem for runs in wanted)
    assert [*experiments] == ["ladder", "equal_compute", "dense_equivalent", "table_size", "knowledge", "shape"]
    of_smaller = [run.config.name for runs in wanted for run in runs if run.config.name.startswith("gpu-15m")]
    assert {f"gpu-15m-{name}" for name in plan.equal_compute.RIVALS} == {*of_smaller}
    untold = {runs[0].results.path.stem for runs in plan.wanted(given(tmp_path), lambda: False)}
    assert untold == {*experiments} - {"knowledge"}
    seeds = [[run.config.seed for run in runs] for runs in wanted if runs[0].config.name == "gpu-25m-pkm"]
    assert seeds == [[0], [0, 1, 2]], "the first seed of all comes first, then a process makes all"


def test_the_steps_of_models_that_have_runs_are_timed_once(tmp_path):
    here = given(tmp_path)
    assert plan.untimed(here) == []
    Results("equal_compute", here.out).add({"name": "gpu-25m-moe", "scale": plan.SCALE, "settings": {}})
    Results("equal_compute", here.out).add({"name": "gpu-25m-pkm", "scale": "gpu-15m", "settings": {}})
    Results("table_size", here.out).add({"name": "gpu-25m-ultramem-rows-x4", "scale": plan.SCALE, "settings": {}})
    moe, fewer_rows = plan.untimed(here)
    assert (moe.name, fewer_rows.name) == ("gpu-25m-moe", "gpu-25m-ultramem-rows-x4")
    Results("step_time", here.out).add({"settings": schedule_settings(moe)})
    assert plan.untimed(here) == [fewer_rows]


def test_the_list_counts_every_run_once(tmp_path, capsys):
    plan.main(["--data", "none", "--people", "none", "--out", str(tmp_path), "--list"])
    lines = capsys.readouterr().out.splitlines()
    counts = [line.split()[1:3] for line in lines if line.startswith("equal_compute")]
    assert counts == [["8", "runs"], ["16", "runs"]], "the other seeds come after the other experiments"
    assert lines[-1].endswith("s in all, one after another")
