import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import tiny
from ultramem import report
from ultramem.compare import Mean, compare, compute_warnings
from ultramem.recipes.registry import with_model
from ultramem.train.summary import read_summary
from ultramem.train.trainer import Trainer


@pytest.fixture(scope="module")
def rivals():
    return [tiny("cpu-dense"), tiny("cpu-ultramem")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def comparison(rivals, prepared, folder):
    return compare(rivals, data=prepared, out=folder, seeds=[0, 1])


def shown(comparison):
    console = Console(width=100, record=True)
    console.print(report.render_table(comparison))
    return console.export_text()


def test_every_recipe_is_trained_with_every_seed(comparison, rivals):
    assert [recipe.name for recipe in comparison.recipes] == ["cpu-dense", "cpu-ultramem"]
    for recipe, rival in zip(comparison.recipes, rivals, strict=True):
        assert [run.seed for run in recipe.runs] == [0, 1]
        for run in recipe.runs:
            assert [point.tokens for point in run.validation] == [2 * rival.tokens_per_step, 4 * rival.tokens_per_step]
            assert run.peak_memory_bytes == read_summary(Path(run.folder) / "summary.json")["peak_memory_bytes"] > 0
            assert [point.tokens for point in run.training] == [step * rival.tokens_per_step for step in (1, 2, 3, 4)]
        assert recipe.runs[0].validation != recipe.runs[1].validation


def test_the_loss_is_the_mean_over_seeds(comparison):
    for recipe in comparison.recipes:
        losses = [run.validation[-1].loss for run in recipe.runs]
        assert recipe.validation_loss == Mean.of(losses)
        assert recipe.validation_loss.mean == pytest.approx(sum(losses) / 2)
        assert recipe.validation_loss.deviation > 0


def test_a_run_is_the_same_as_alone(comparison, rivals, prepared, folder, tmp_path):
    alone = compare(rivals[1:], data=prepared, out=tmp_path, seeds=[1])
    losses = [point.loss for point in alone.recipes[0].runs[0].training]
    assert losses == [point.loss for point in comparison.recipes[1].runs[1].training]


def test_a_finished_comparison_is_only_read(comparison, rivals, prepared, folder, monkeypatch):
    monkeypatch.setattr(Trainer, "take_step", lambda self: pytest.fail("it trains again"))
    again = compare(rivals, data=prepared, out=folder, seeds=[0, 1])
    assert [recipe.runs for recipe in again.recipes] == [recipe.runs for recipe in comparison.recipes]


@pytest.mark.parametrize(
    ("name", "content"),
    [("summary.json", "{"), ("summary.json", "{}"), ("metrics.jsonl", "{\n"), ("metrics.jsonl", "")],
)
def test_a_damaged_file_of_a_finished_run_is_named(comparison, rivals, prepared, folder, tmp_path, name, content):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "cpu-dense-seed0" / name
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"{file} is damaged"):
        compare(rivals, data=prepared, out=tmp_path)


def test_a_run_that_was_asked_to_stop_ends_the_comparison(rivals, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("ultramem.compare.train", lambda *args, **options: {"status": "stopped at step 2"})
    with pytest.raises(KeyboardInterrupt):
        compare(rivals, data=prepared, out=tmp_path)


@pytest.mark.parametrize("field", ["steps", "batch_size", "sequence_length"])
def test_recipes_that_would_see_other_tokens_are_refused(rivals, prepared, tmp_path, field):
    dense, ultramem = rivals
    other = replace(ultramem, **{field: getattr(ultramem, field) - 1})
    flag = "--" + field.replace("_", "-")
    with pytest.raises(ValueError, match=f"{field} differs .*cpu-dense has .*{flag}"):
        compare([dense, other], data=prepared, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_recipe_given_twice_is_refused(rivals, prepared, tmp_path):
    with pytest.raises(ValueError, match="each once"):
        compare([rivals[0], rivals[0]], data=prepared, out=tmp_path)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_are_given_once_each(rivals, prepared, tmp_path, seeds):
    with pytest.raises(ValueError, match="seeds"):
        compare(rivals, data=prepared, out=tmp_path, seeds=seeds)


@pytest.mark.parametrize(("flops", "comparable"), [(100, True), (105, True), (96, True), (106, False), (95, False)])
def test_five_percent_is_the_limit(rivals, monkeypatch, flops, comparable):
    monkeypatch.setattr("ultramem.compare._flops_per_token", lambda config: {"cpu-dense": 100}.get(config.name, flops))
    assert bool(compute_warnings(rivals)) is not comparable


def test_unequal_compute_is_said_everywhere(comparison, rivals, prepared, folder, tmp_path):
    dense, _ = rivals
    wide = replace(with_model(dense, intermediate_size=64), name="wide")
    unequal = compare([dense, wide], data=prepared, out=tmp_path)
    report.write(unequal, tmp_path)

    assert not unequal.comparable
    (warning,) = unequal.warnings
    assert "not comparable: wide spends" in warning
    assert "more FLOPs a token than cpu-dense" in warning
    assert warning in " ".join(shown(unequal).split())
    assert warning in (tmp_path / "report.html").read_text()
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved["comparable"] is False
    assert saved["warnings"] == [warning]


def test_table_and_json_state_what_each_recipe_costs(comparison, folder):
    report.write(comparison, folder)
    saved = json.loads((folder / "comparison.json").read_text())
    table = shown(comparison)
    for recipe in saved["recipes"]:
        assert recipe["name"] in table
        assert recipe["parameters"] >= recipe["active_parameters"] > 0
        assert recipe["flops_per_token"] > 0
        assert recipe["seconds_per_step"]["mean"] > 0
        assert f"{recipe['validation_loss']['mean']:.3f} ± {recipe['validation_loss']['deviation']:.3f}" in table
        assert recipe["settings"]["model"]["hidden_size"] == 16
    assert saved["environments"][0]["packages"]["torch"]


def test_the_page_is_whole_and_needs_nothing_else(comparison):
    page = report.render_html(comparison)
    tags, links = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)
            links.extend(value for name, value in attributes if name in ("src", "href"))

    Reader().feed(page)
    assert tags.count("svg") == 3
    assert tags.count("tr") == 3
    assert not links
    assert "script" not in tags
    assert "url(http" not in page
    assert "prefers-color-scheme: dark" in page
