import json
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.study import (
    command,
    dense_equivalent,
    equal_compute,
    ladder,
    learning_rates,
    schedule,
    shape,
    step_time,
    table_size,
)
from benchmarks.study.dense_equivalent import FACTORS, grown
from benchmarks.study.learning_rates import tuned
from benchmarks.study.results import Results
from benchmarks.study.run import train_and_measure
from ultramem import recipes
from ultramem.accounting import count_flops, count_parameters
from ultramem.recipes.registry import with_model
from ultramem.train.config_json import config_to_dict
from ultramem.train.trainer import Trainer, TrainingError

pytestmark = pytest.mark.usefixtures("nothing_kept")

EXPERIMENTS = {
    equal_compute: 3 * 8,
    dense_equivalent: 2 * 3,
    table_size: 3,
    ladder: 18,
    shape: 9,
}


def make(experiment, data, out, *flags):
    arguments = ["--scale", "tiny", "--data", str(data), "--out", str(out), *flags]
    seeds = getattr(experiment, "SEEDS", (0,))
    command.main(experiment.EXPERIMENT, experiment.__doc__, experiment.runs, arguments, seeds=seeds)
    return Results(experiment.EXPERIMENT, out).rows()


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda module: module.EXPERIMENT)
def test_an_experiment_runs_from_end_to_end(experiment, prepared, tiny_scale, in_this_process, tmp_path, monkeypatch):
    rows = make(experiment, prepared, tmp_path)
    assert len(rows) == EXPERIMENTS[experiment]
    for row in rows:
        assert {"commit", "hardware", "torch", "date", "settings", "seed"} <= set(row)
        last = row["validation"][-1]
        assert set(last) == {"tokens", "seconds", "loss", "new_loss"}
        assert (last["tokens"], last["new_loss"]) == (row["tokens"], row["new_loss"])
        assert last["loss"] == pytest.approx(row["validation_loss"])
        assert row["tokens"] == row["settings"]["steps"] * 64
        assert [point["tokens"] for point in row["training"]][-1] == row["tokens"]
        assert (row["memory"] is None) == (row["settings"]["model"]["memory"] is None)
    if experiment is dense_equivalent:
        rates = [row["settings"]["optimizer"]["learning_rate"] for row in rows if row["name"] == "cpu-dense-x2"]
        assert rates[0] == 2 * rates[1]
    # The same command finds everything done.
    monkeypatch.setattr(schedule, "start", lambda *_: pytest.fail("it trains again"))
    assert make(experiment, prepared, tmp_path) == rows


def test_the_sweep_ends_when_every_best_rate_lies_between_others(
    prepared, tiny_scale, in_this_process, tmp_path, monkeypatch
):
    rows = make(learning_rates, prepared, tmp_path)
    for rival in learning_rates.RIVALS:
        losses = learning_rates.losses_by_rate(rows, f"cpu-{rival}")
        best = min(losses, key=losses.get)
        assert min(losses) < best < max(losses) or len(losses) == learning_rates.MOST_RATES
    for rival in learning_rates.TABLES_SWEPT:
        tables = [row["settings"]["optimizer"] for row in rows if row["name"] == f"cpu-{rival}"]
        own = recipes.get(f"cpu-{rival}").optimizer.table_multiplier_start
        assert sum(optimizer["table_multiplier_start"] != own for optimizer in tables) == 2
        assert sum(optimizer["table_horizon_steps"] is not None for optimizer in tables) == 1
    monkeypatch.setattr(schedule, "start", lambda *_: pytest.fail("it trains again"))
    assert make(learning_rates, prepared, tmp_path) == rows


def test_steps_are_timed_once_and_a_failure_is_said(prepared, tiny_scale, tmp_path, monkeypatch, capsys):
    results = Results("step_time", tmp_path)
    monkeypatch.setattr(step_time, "TIMED_STEPS", 1)
    configs = [*step_time.rivals(tiny_scale)][:3]
    take_step = Trainer.take_step

    def broken(trainer):
        if trainer.config.model.ffn == "moe":
            raise RuntimeError("no experts today")
        return take_step(trainer)

    monkeypatch.setattr(Trainer, "take_step", broken)
    step_time.measure_all("tiny", configs, prepared, results)
    assert [row["name"] for row in results.rows()] == ["cpu-dense", "cpu-ultramem"]
    assert "no experts today" in capsys.readouterr().out
    assert all(row["seconds_per_step"] > 0 and row["scale"] == "tiny" for row in results.rows())
    monkeypatch.setattr(step_time, "measure", lambda *_: pytest.fail("it measures again"))
    step_time.measure_all("tiny", configs[::2], prepared, results)


def test_a_run_whose_loss_is_not_finite_ends_and_is_kept(prepared, tiny_scale, monkeypatch):
    config = tiny_scale.fit(tiny_scale.recipe("ultramem"), 64 * 4)
    take_step = Trainer.take_step

    def unlucky(trainer):
        if trainer.step == 2:
            raise TrainingError("step 3: loss is nan")
        return take_step(trainer)

    monkeypatch.setattr(Trainer, "take_step", unlucky)
    row = train_and_measure(config, prepared)
    assert row["ended_early"] == "step 3: loss is nan"
    assert row["tokens"] == row["validation"][-1]["tokens"] == 2 * 64
    assert row["memory"]


def finished(config, loss=3.0):
    """A row as a run of `config` leaves it."""
    settings = config_to_dict(config)
    return {"name": config.name, "scale": "tiny", "seed": config.seed, "validation_loss": loss, "settings": settings}


def test_a_torn_line_is_left_out_and_its_run_made_again(tiny_scale, tmp_path):
    results = Results("table_size", tmp_path)
    first, second, *_ = table_size.runs(tiny_scale, 256, results, [0])
    results.add(finished(first))
    results.add(finished(second))
    assert results.has(first)
    assert results.has(second)
    results.path.write_text(results.path.read_text()[:-9])
    assert results.has(first)
    assert not results.has(second)
    results.add(finished(second))
    assert [row["name"] for row in results.rows()] == [first.name, second.name]


def test_another_seed_or_setting_is_another_run(tiny_scale, tmp_path):
    results = Results("table_size", tmp_path)
    config = next(table_size.runs(tiny_scale, 256, results, [0]))
    results.add(finished(with_model(config, vocab_size=77)))
    assert results.has(config)
    assert results.has(replace(config, compile=True)), "how it is computed does not make it another run"
    assert not results.has(replace(config, seed=1))
    assert not results.has(replace(config, steps=5))
    for row in (rows := results.rows()):
        del row["settings"]["tensorboard"], row["settings"]["optimizer"]["lazy_share"]
    results.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results.has(config), "a setting that did not exist then had its default"
    assert not results.has(replace(config, tensorboard=True))


def test_a_new_folder_begins_with_what_is_kept(tiny_scale, tmp_path):
    kept = Results("table_size", tmp_path / "kept")
    config = next(table_size.runs(tiny_scale, 256, kept, [0]))
    kept.add(finished(config))
    results = Results("table_size", tmp_path / "new", tmp_path / "kept")
    assert results.rows() == kept.rows()
    results.add(finished(replace(config, seed=1)))
    assert len(kept.rows()) == 1


def test_equal_compute_takes_the_best_rates(tiny_scale, tmp_path):
    results = Results("equal_compute", tmp_path)
    sweep = Results("learning_rates", tmp_path)
    moe = tiny_scale.fit(tiny_scale.recipe("moe"), 256)
    for rate, loss in ((1e-4, 3.1), (2e-4, 3.0), (3e-4, 3.2)):
        config = replace(moe, optimizer=replace(moe.optimizer, learning_rate=rate))
        sweep.add(finished(config, loss))
    dense, chosen, *_ = equal_compute.runs(tiny_scale, 256, results, [0])
    assert chosen.name == "cpu-moe"
    assert chosen.optimizer.learning_rate == 2e-4
    assert dense.optimizer.learning_rate == recipes.get("cpu-dense").optimizer.learning_rate


def test_the_sweep_asks_for_more_once_the_first_runs_are_there(tiny_scale, tmp_path):
    """The best lies between two others; UltraMem's tables are tried at it."""
    results = Results("learning_rates", tmp_path)
    first = [*learning_rates.runs(tiny_scale, 256, results, [0])]
    assert [run.name for run in first] == [f"cpu-{rival}" for rival in learning_rates.RIVALS for _ in range(3)]
    losses = {"cpu-dense": (3.0, 3.1, 3.2), "cpu-ultramem": (3.2, 3.0, 3.1), "cpu-pkm": (3.2, 3.1, 3.0)}
    for run in first:
        if run.name in losses:
            place = tiny_scale.learning_rates.index(run.optimizer.learning_rate)
            results.add(finished(run, losses[run.name][place]))
    lacking = [*results.missing(learning_rates.runs(tiny_scale, 256, results, [0]))]
    rates = {}
    for run in lacking:
        rates.setdefault(run.name, []).append(run.optimizer.learning_rate)
    assert rates["cpu-dense"] == [5e-4]
    assert rates["cpu-pkm"] == [2e-1]
    assert rates["cpu-ultramem"] == [1e-2] * 3
    assert rates["cpu-moe"] == [1e-3, 1e-2, 1e-1]


def test_what_was_not_swept_takes_the_nearest_models_rates(tiny_scale):
    def row(name, loss, **optimizer):
        settings = {"table_multiplier_start": 10.0, "table_horizon_steps": None} | optimizer
        settings = {"steps": 30, "optimizer": settings}
        return {"name": name, "scale": "tiny", "validation_loss": loss, "settings": settings}

    rows = [
        row("cpu-dense", 3.0, learning_rate=0.5),
        row("cpu-ultramem", 3.0, learning_rate=0.25, table_horizon_steps=10),
        row("cpu-ultramem", 3.1, learning_rate=0.125),
    ]
    moe = tuned(tiny_scale.fit(recipes.get("cpu-moe"), 64 * 60), rows, tiny_scale)
    assert moe.optimizer.learning_rate == 0.5
    pkm = tuned(tiny_scale.fit(recipes.get("cpu-pkm"), 64 * 60), rows, tiny_scale)
    assert (pkm.optimizer.learning_rate, pkm.optimizer.table_horizon_steps) == (0.25, 20)
    assert tuned(pkm, [], tiny_scale) == pkm


@pytest.mark.parametrize("family", ["cpu", "gpu-25m", "gpu-100m"])
@pytest.mark.parametrize("factor", FACTORS)
def test_dense_models_grow_by_the_factor(family, factor):
    dense = recipes.get(f"{family}-dense")
    larger = grown(dense, factor).model
    assert count_parameters(larger).matrices == pytest.approx(factor * count_parameters(dense.model).matrices, rel=0.01)
    assert larger.head_dim == dense.model.head_dim


@pytest.mark.parametrize("family", ["cpu", "gpu-15m", "gpu-25m", "gpu-100m"])
def test_the_simple_recipe_is_the_shape_without_skips_and_expansion(family):
    ultramem, simple = recipes.get(f"{family}-ultramem"), recipes.get(f"{family}-ultramem-simple")
    changed = with_model(ultramem, **shape.VARIANTS["no-expansion-no-skips"](ultramem.model))
    assert equal_compute.with_as_many_matrices(changed, ultramem).model == simple.model


def test_rows_multiply_at_fixed_compute(tiny_scale, tmp_path):
    ultramem = recipes.get("gpu-25m-ultramem")
    scale = command.SCALES["gpu-25m"]
    sizes = list(table_size.runs(scale, scale.tokens, Results("table_size", tmp_path), [0]))
    sizes.append(ultramem)
    tables = [count_parameters(config.model).tables for config in sizes]
    assert [table / tables[0] for table in tables] == [1, 4, 16, 64]
    flops = [count_flops(config.model, 512).per_token for config in sizes]
    assert max(flops) / min(flops) < 1.01


@pytest.mark.parametrize("name", ["gpu-15m", "gpu-25m", "gpu-100m"])
def test_shapes_differ_at_equal_compute_and_equal_tables(name, tmp_path):
    scale = command.SCALES[name]
    recipe, *variants = shape.runs(scale, scale.tokens, Results("shape", tmp_path), [0])
    assert len(variants) == len(shape.VARIANTS)
    for count in (
        lambda config: count_parameters(config.model).tables,
        lambda config: count_parameters(config.model).matrices,
        lambda config: count_flops(config.model, scale.sequence_length).per_token,
    ):
        assert [count(config) for config in variants] == pytest.approx([count(recipe)] * len(variants), rel=0.01)


def test_the_machine_that_measures_needs_no_tyro_and_no_cattrs():
    modules = ", ".join(f"benchmarks.study.{name}" for name in ("ladder", "plan", "report"))
    code = f"import sys; sys.modules.update(tyro=None, cattrs=None, datasets=None, lm_eval=None); import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runs_on_a_gpu_are_compiled_and_those_on_a_cpu_are_not():
    for family, scale in command.SCALES.items():
        assert scale.fit(scale.recipe("ultramem"), scale.tokens).compile == family.startswith("gpu"), family
