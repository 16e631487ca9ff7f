import dataclasses
import json
import os

import pytest

from tests.train.tiny import tiny_config
from ultramem.data.tokens import TokenDataset
from ultramem.train.config import OptimizerConfig
from ultramem.train.run_folder import RunFolder, open_run
from ultramem.train.trainer import train


@pytest.fixture(scope="module")
def dataset(data):
    return TokenDataset.open(data, "train")


def begin(folder, config, dataset):
    with open_run(folder, config, dataset):
        pass


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path, dataset):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="not empty and not a run's folder"):
        begin(tmp_path, tiny_config(), dataset)
    with pytest.raises(ValueError, match="is a file"):
        begin(tmp_path / "thesis.tex", tiny_config(), dataset)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"batch_size": 8}, "batch_size was 4, now it is 8"),
        ({"evaluate_batches": 1}, "evaluate_batches was 3, now it is 1"),
        ({"optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=4)}, "optimizer.learning_rate was 0.01, now"),
    ],
)
def test_another_setting_is_refused_with_both_values_and_nothing_is_changed(tmp_path, dataset, changes, message):
    begin(tmp_path, tiny_config(), dataset)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        begin(tmp_path, tiny_config(**changes), dataset)
    assert contents(tmp_path) == before


def test_another_model_is_refused_with_both_values(tmp_path, dataset):
    begin(tmp_path, tiny_config(), dataset)
    model = dataclasses.replace(tiny_config().model, intermediate_size=64, memory_top_k=5)
    with pytest.raises(
        ValueError, match=r"model.intermediate_size was 48, now it is 64; .*model.memory_top_k was 4, now"
    ):
        begin(tmp_path, tiny_config(model=model), dataset)


def test_how_often_something_is_written_may_change_and_is_recorded(tmp_path, dataset):
    begin(tmp_path, tiny_config(), dataset)
    begin(tmp_path, tiny_config(log_every_steps=7, keep_checkpoints=9, activation_checkpointing=True), dataset)
    recorded = json.loads((tmp_path / "run.json").read_text())
    assert (recorded["log_every_steps"], recorded["keep_checkpoints"]) == (7, 9)


def test_a_setting_that_came_after_the_run_had_its_default(tmp_path, dataset):
    lazy = dataclasses.replace(tiny_config().optimizer, lazy_tables=True)
    begin(tmp_path, tiny_config(optimizer=lazy), dataset)
    recorded = json.loads((tmp_path / "run.json").read_text())
    del recorded["seed"], recorded["optimizer"]["lazy_share"], recorded["model"]["memory_window"]
    (tmp_path / "run.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match=r"other settings \(optimizer.lazy_share was 1.0, now it is 0.5\)"):
        begin(tmp_path, tiny_config(optimizer=dataclasses.replace(lazy, lazy_share=0.5)), dataset)
    begin(tmp_path, tiny_config(optimizer=lazy), dataset)


def test_two_processes_cannot_train_in_one_folder(tmp_path, dataset):
    with open_run(tmp_path, tiny_config(), dataset), pytest.raises(ValueError, match="in use by another"):
        begin(tmp_path, tiny_config(), dataset)
    begin(tmp_path, tiny_config(), dataset)


def test_a_damaged_run_json_is_named(tmp_path, dataset):
    begin(tmp_path, tiny_config(), dataset)
    for text, message in (
        ("{", r"run\.json is damaged .*restore it"),
        ("[]", r"run\.json is damaged"),
        ("{}", r"run\.json is damaged .*'name' is None"),
    ):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            begin(tmp_path, tiny_config(), dataset)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_data_json_is_named(tmp_path, dataset, content):
    begin(tmp_path, tiny_config(), dataset)
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.json is damaged .*writes it"):
        begin(tmp_path, tiny_config(), dataset)


def test_damaged_versions_are_named(tmp_path, dataset):
    for content in ("{", "{}"):
        (tmp_path / "environment.json").write_text(content)
        with pytest.raises(ValueError, match=r"environment\.json is damaged .*remove it"):
            RunFolder(tmp_path).record_start(0)


def test_a_disk_that_fills_when_a_run_is_opened_again_leaves_every_file_whole(tmp_path, dataset, monkeypatch):
    begin(tmp_path, tiny_config(), dataset)
    before = contents(tmp_path)
    for full_after in range(4):
        written = []

        def replace(source, target, written=written, full_after=full_after):
            if len(written) == full_after:
                raise OSError(28, "No space left on device")
            written.append(target)
            os.rename(source, target)

        with monkeypatch.context() as patched:
            patched.setattr("os.replace", replace)
            with pytest.raises(OSError, match="No space"):
                begin(tmp_path, tiny_config(), dataset)
        after = {path: content for path, content in contents(tmp_path).items() if path.suffix != ".tmp"}
        assert after == before


def test_fewer_steps_than_taken_are_refused(data, tmp_path):
    stable = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=2, table_horizon_steps=4)
    train(tiny_config(steps=5, optimizer=stable), data, tmp_path / "run")
    with pytest.raises(ValueError, match=r"steps is 4, but .* has taken 5 already: give --steps 5 or more"):
        train(tiny_config(steps=4, optimizer=stable), data, tmp_path / "run")


def test_a_run_may_become_longer_where_the_steps_taken_would_have_been_the_same(data, tmp_path):
    stable = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=2, table_horizon_steps=4)
    train(tiny_config(steps=5, optimizer=stable), data, tmp_path / "stable")
    summary = train(tiny_config(steps=7, optimizer=stable), data, tmp_path / "stable")
    assert (summary["status"], summary["step"]) == ("finished", 7)
    cosine = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, table_horizon_steps=4)
    train(tiny_config(steps=5, optimizer=cosine), data, tmp_path / "cosine")
    with pytest.raises(ValueError, match="steps was 5, now it is 7"):
        train(tiny_config(steps=7, optimizer=cosine), data, tmp_path / "cosine")
