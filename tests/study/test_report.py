import re
from xml.etree import ElementTree

import pytest

from benchmarks.study import report
from benchmarks.study.ladder import PAPER
from benchmarks.study.results import Results
from benchmarks.study.sections import dense_size_for
from ultramem import recipes
from ultramem.train.config_json import config_to_dict


def row(name, loss, *, seed=0, parameters=100e6, active=25e6, scale="gpu-25m", recipe="gpu-25m-dense", **more):
    """A finished run as `train_and_measure` describes it."""
    config = recipes.get(recipe)
    points = [{"tokens": tokens, "seconds": tokens / 10, "loss": loss + 1 / tokens} for tokens in (10, 50, 100)]
    return {
        "name": name,
        "seed": seed,
        "scale": scale,
        "tokens": 100,
        "validation_loss": loss,
        "bits_per_byte": loss / 3,
        "training_loss": loss - 0.1,
        "parameters": parameters,
        "table_parameters": 0 if config.model.memory is None else parameters,
        "active_parameters": active,
        "flops_per_token": 50e6,
        "seconds_per_step": 0.02,
        "validation": points,
        "memory": None if config.model.memory is None else {"1:3": {"rows_read": 0.5}},
        "settings": config_to_dict(config),
        "data": {"training_tokens": 1000, "vocabulary": 16384},
        "hardware": "a machine",
        "torch": "2.11",
        "commit": "abc1234",
        "date": "2026-11-24",
        **more,
    }


@pytest.fixture
def kept(tmp_path):
    """Results of every experiment, as they may look."""

    def keep(experiment, rows):
        for each in rows:
            Results(experiment, tmp_path / "kept", tmp_path / "none").add(each)

    keep(
        "equal_compute",
        [
            row(name, loss + 0.01 * seed, seed=seed, parameters=parameters, recipe=name)
            for seed in range(3)
            for name, loss, parameters in (
                ("gpu-25m-dense", 3.0, 25e6),
                ("gpu-25m-moe", 2.9, 277e6),
                ("gpu-25m-ultramem", 2.85, 277e6),
            )
        ],
    )
    keep("dense_equivalent", [row(f"gpu-25m-dense-x{f}", 3.01 - 0.1 * i, parameters=f * 25e6, active=f * 25e6)
                              for i, f in enumerate((1, 2, 4, 8))])  # fmt: skip
    keep("table_size", [row(f"gpu-25m-ultramem-rows-x{f}", 3 - f / 100, parameters=f * 4e6, recipe="gpu-25m-ultramem")
                        for f in (1, 4, 16, 64)])  # fmt: skip
    names = [*PAPER, "07-ive-9", "08-tdqkr-3", "09-mcs-4"]
    keep("ladder", [row(f"ladder-gpu-25m-{name}", 3 - i / 100, recipe=f"ladder-gpu-25m-{name}")
                    for i, name in enumerate(names)])  # fmt: skip
    keep("learning_rates", [row("gpu-25m-ultramem", 3.2, recipe="gpu-25m-ultramem"), row("gpu-25m-dense", 3.3)])
    quiz = {"persons": 500, "exact_recall": 0.5, "bits_a_person": 20.0, "stored_bits": 1e4}
    knowledge = [row(f"{kind}-500-people", 3.2, afterwards=quiz) for kind in ("dense", "ultramem")]
    keep("knowledge", [{name: value for name, value in each.items() if name != "scale"} for each in knowledge])
    return tmp_path / "kept"


def test_the_page_is_what_follows_from_the_kept_results():
    part, plots = report.study()
    page = report.PAGE.read_text()
    assert report.fill(page, part) == page, "python -m benchmarks.study.report rewrites the page"
    assert {path.name: path.read_text() for path in report.PLOTS.glob("*.svg")} == plots


def test_no_results_are_said(tmp_path):
    assert report.study(tmp_path) == (report.NOTHING_KEPT, {})


def test_every_experiment_has_its_section_its_command_and_its_file(kept):
    part, _ = report.study(kept)
    for experiment, title in report.TITLES.items():
        assert f"### {title}" in part
        assert f"python -m benchmarks.study.{experiment}" in part
        assert f"benchmarks/results/study/{experiment}.jsonl" in part
    assert "abc1234" in part
    assert "a machine" in part


def test_numbers_are_the_rows_means_with_their_spread(kept):
    part, _ = report.study(kept)
    assert re.search(r"\| moe \| 277M .* 2\.910 ± 0\.010 ", part)
    # 2.86 lies between 4x (2.81) and 2x (2.91), half way.
    assert re.search(r"\| ultramem \| 2\.860 \| 70\.7M \| 2\.83 \|", part)
    assert re.search(r"\| 03-half-value \| 2\.980 \| -0\.010 \| -0\.022 \|", part)
    # The twelfth alternative stands against rung 06, which is at 2.95.
    assert re.search(r"\| 07-ive-9 \| 2\.880 \| -0\.070 \| -0\.025 \|", part)
    assert re.search(r"\| x64 \| 256M \| 2\.360 \| 20\.0 \| 50% \|", part)
    assert re.search(r"\| ultramem \| 100M \| 500 \| 50\.0% \| 20\.0 \| 10,000 \| 0\.000 \|", part)


def test_plots_stand_alone_and_the_page_shows_each(kept, tmp_path):
    part, plots = report.study(kept)
    assert len(plots) == 6
    for name, svg in plots.items():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert f"(study/{name})" in part


def test_writing_replaces_the_part_and_removes_old_plots(kept, tmp_path):
    page, plots = tmp_path / "page.md", tmp_path / "study"
    page.write_text(f"before\n{report.BEGIN}old\n{report.END}\nafter\n")
    plots.mkdir()
    (plots / "old.svg").write_text("<svg/>")
    report.write(page, plots, kept)
    once = page.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old\n" not in once
    assert sorted(path.name for path in plots.iterdir()) == sorted(report.study(kept)[1])
    report.write(page, plots, kept)
    assert page.read_text() == once


def test_beyond_the_dense_sizes_only_a_bound_is_said():
    points = [(10e6, 3.0), (100e6, 2.0)]
    assert dense_size_for(3.5, points) == "less than 10M"
    assert dense_size_for(1.5, points) == "more than 100M"
    assert dense_size_for(2.5, points) == pytest.approx(10e6 * 10**0.5)
