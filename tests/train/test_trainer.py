import dataclasses
import errno
import json
import math
import shutil
import signal
import sys

import pytest
import torch
from torch._dynamo.utils import counters

from tests.train.tiny import losses, tiny_config, write_data
from ultramem.data.loader import TokenLoader
from ultramem.data.tokens import TokenDataset
from ultramem.optim import RowAdamW, clip_gradients, clipped_step
from ultramem.train import trainer as trainer_module
from ultramem.train.checkpoint import Checkpoints
from ultramem.train.journal import Journal
from ultramem.train.run_folder import RunFolder
from ultramem.train.trainer import Trainer, TrainingError, train


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """Twenty steps in one go."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    summary = train(tiny_config(), data, out)
    assert summary["status"] == "finished"
    return out


def at_step(step, action):
    """A `Trainer.take_step` that does something before it takes a certain step."""
    take_step = Trainer.take_step

    def patched(self):
        if self.step == step:
            action(self)
        return take_step(self)

    return patched


def test_learns_and_leaves_a_whole_run_folder(unbroken):
    lines = losses(unbroken)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
    assert lines[-2]["loss"] < lines[0]["loss"] - 0.15
    validations = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validations] == [10, 20]
    summary = json.loads((unbroken / "summary.json").read_text())
    assert summary["final_validation_loss"] == validations[-1]["validation_loss"]
    assert summary["best_validation_loss"] == min(line["validation_loss"] for line in validations)
    assert summary["tokens"] == 20 * 4 * 16 == lines[-1]["step"] * 64
    assert summary["table_parameters"] == 64 * 16
    assert summary["peak_memory_bytes"] > 1e6
    assert summary["tokens_per_second"] > 0
    names = {"run.json", "config.json", "environment.json", "data.json", "tokenizer.json", "metrics.jsonl"}
    assert names <= {entry.name for entry in unbroken.iterdir()}
    (start,) = json.loads((unbroken / "environment.json").read_text())
    assert start["packages"]["torch"] == torch.__version__


def test_lines_have_what_they_should(unbroken):
    first = losses(unbroken)[0]
    assert first["loss"] == pytest.approx(first["cross_entropy"] + first["auxiliary_loss"])
    assert first["cross_entropy"] == pytest.approx(math.log(64), abs=1.0)
    assert first["learning_rate"] == 1e-2 / 4
    assert first["table_learning_rate"] == 10 * first["learning_rate"]
    assert first["gradient_norm"] > 0


def test_the_vocabulary_and_its_ends_are_the_datas(data, tmp_path):
    config = tiny_config(steps=4)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=99))
    train(config, data, tmp_path / "run")
    model = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (model["vocab_size"], model["bos_token_id"], model["eos_token_id"]) == (64, 0, 0)


def test_the_same_command_twice_gives_the_same_numbers_and_the_second_time_at_once(
    data, tmp_path, unbroken, monkeypatch
):
    train(tiny_config(), data, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(unbroken)
    monkeypatch.setattr(Trainer, "take_step", None)
    assert train(tiny_config(), data, tmp_path / "run")["status"] == "finished"


def test_another_seed_gives_other_numbers(data, tmp_path, unbroken):
    train(tiny_config(seed=1, steps=4), data, tmp_path / "run")
    assert losses(tmp_path / "run")[0]["loss"] != losses(unbroken)[0]["loss"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly_and_the_same_command_goes_on_bit_for_bit(
    number, data, tmp_path, unbroken, monkeypatch
):
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", at_step(6, lambda trainer: signal.raise_signal(number)))
        summary = train(tiny_config(), data, tmp_path / "run")
    assert (summary["status"], summary["step"]) == ("stopped at step 7", 7)
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "run" / "summary.json").exists()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps == [7]
    assert train(tiny_config(), data, tmp_path / "run")["status"] == "finished"
    assert losses(tmp_path / "run") == losses(unbroken)
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())) == 2


def test_an_error_between_checkpoints_costs_only_the_steps_since_the_last(data, tmp_path, unbroken, monkeypatch):
    def fail(trainer):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", at_step(16, fail))
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny_config(), data, tmp_path / "run")
    assert losses(tmp_path / "run")[-1]["step"] == 16
    train(tiny_config(), data, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(unbroken)


def make_trainer(data, tmp_path, **changes):
    """A trainer outside any run folder, to look at single steps."""
    config = tiny_config(**changes)
    training, validation = TokenDataset.open(data, "train"), TokenDataset.open(data, "validation")
    loader = TokenLoader(training, config.sequence_length, config.batch_size, config.seed)
    return Trainer(config, RunFolder(tmp_path), loader, validation, torch.device("cpu"))


def without_dropout():
    return dataclasses.replace(tiny_config().model, dropout=0.0)


def test_accumulated_gradients_are_the_gradients_of_the_whole_batch(data, tmp_path, monkeypatch):
    gradients = {}
    for size in (4, 3, 1):
        trainer = make_trainer(data, tmp_path, micro_batch_size=size, model=without_dropout())
        result = None
        for optimizer in trainer.optimizers:
            monkeypatch.setattr(optimizer, "step", lambda **factor: None)
            monkeypatch.setattr(optimizer, "zero_grad", lambda: None)
        result = trainer.take_step()
        named = trainer.model.named_parameters()
        gradients[size] = ({name: parameter.grad for name, parameter in named}, torch.tensor(result))
    for size in (3, 1):
        torch.testing.assert_close(gradients[size], gradients[4], rtol=1e-4, atol=1e-6)


def test_tables_have_their_own_optimizer_and_everything_is_stepped(data, tmp_path):
    trainer = make_trainer(data, tmp_path, model=without_dropout())
    trunk, tables = trainer.optimizers
    assert isinstance(tables, RowAdamW)
    assert [id(p) for group in tables.param_groups for p in group["params"]] == [
        id(trainer.model.model.tables[0].weight)
    ]
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.take_step()
    still = [name for name, parameter in trainer.model.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []
    assert trunk.param_groups[0]["weight_decay"] == 0.1
    assert tables.param_groups[0]["weight_decay"] == 0


def test_a_model_without_tables_has_one_optimizer(data, tmp_path):
    model = dataclasses.replace(tiny_config().model, memory=None, memory_units=[])
    trainer = make_trainer(data, tmp_path, model=model)
    assert len(trainer.optimizers) == 1
    trainer.take_step()
    assert trainer._line(trainer.take_step(), 1.0)["table_learning_rate"] is None


def test_the_factor_bounds_the_step_and_without_a_limit_it_is_one(data, tmp_path, monkeypatch):
    factors = []

    def step(optimizer, factor):
        factors.append(factor.item())
        clipped_step(optimizer, factor)

    monkeypatch.setattr(trainer_module, "clipped_step", step)
    norms = []
    for clip_norm in (1e-3, None):
        settings = dataclasses.replace(tiny_config().optimizer, clip_norm=clip_norm)
        norms.append(make_trainer(data, tmp_path, optimizer=settings).take_step().gradient_norm)
    assert norms[0] == norms[1] > 1e-3
    assert factors == [pytest.approx(1e-3 / norms[0], rel=1e-2)] * 2 + [1, 1]


@pytest.mark.parametrize("changes", [{}, {"table_optimizer_state": "small"}, {"lazy_tables": True}], ids=str)
def test_training_is_as_if_all_gradients_were_clipped_in_place(changes, data, tmp_path, monkeypatch):
    settings = dataclasses.replace(tiny_config().optimizer, clip_norm=0.1, **changes)
    trainers = [make_trainer(data, tmp_path, optimizer=settings) for _ in range(2)]
    results = [[trainers[0].take_step() for _ in range(3)]]

    def norm_of_clipped(parameters):
        return clip_gradients(parameters, settings.clip_norm)

    monkeypatch.setattr(trainer_module, "gradient_norm", norm_of_clipped)
    monkeypatch.setattr(trainer_module, "clipped_step", lambda optimizer, factor: optimizer.step())
    results.append([trainers[1].take_step() for _ in range(3)])
    assert results[0] == [pytest.approx(result, rel=1e-5) for result in results[1]]
    assert results[0][0].gradient_norm > 2 * settings.clip_norm
    ours, theirs = ([*trainer.model.parameters()] for trainer in trainers)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_bf16_and_activation_checkpointing_train_alike(data, tmp_path):
    expected = make_trainer(data, tmp_path, model=without_dropout()).take_step()
    checkpointed = make_trainer(data, tmp_path, model=without_dropout(), activation_checkpointing=True)
    assert checkpointed.model.model.gradient_checkpointing
    assert checkpointed.take_step() == pytest.approx(expected, rel=1e-5)
    low = make_trainer(data, tmp_path, model=without_dropout(), precision="bf16")
    assert low.take_step() == pytest.approx(expected, rel=0.03)
    assert all(parameter.dtype == torch.float32 for parameter in low.model.parameters())


@pytest.mark.slow
def test_compiled_steps_train_alike_and_again_the_same_from_the_cache(data, tmp_path):
    """Accumulating micro-batches; the second compiled run is given nothing but what the first left on the disk."""
    compilations, steps = [], []
    for chosen in (False, True, True):
        before = counters["inductor"]["fxgraph_cache_miss"]
        trainer = make_trainer(data, tmp_path, model=without_dropout(), micro_batch_size=2, compile=chosen)
        steps.append([trainer.take_step() for _ in range(3)])
        trainer.evaluate()
        compilations.append(counters["inductor"]["fxgraph_cache_miss"] - before)
    plain, compiled, again = steps
    assert compiled == [pytest.approx(step, rel=1e-4) for step in plain]
    assert again == compiled
    assert compilations[2] == 0


def test_a_loss_that_is_not_finite_stops_before_the_weights_and_names_the_culprit(data, tmp_path, monkeypatch):
    def poison(trainer):
        with torch.no_grad():
            trainer.model.model.tables[0].weight[:, 3] = math.nan

    config = tiny_config(checkpoint_every_steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", at_step(7, poison))
        message = r"step 8: loss is nan; .*weights.*: model\.tables\.0\.weight;.*step-00000005 is intact"
        with pytest.raises(TrainingError, match=message):
            train(config, data, tmp_path / "run")
    assert losses(tmp_path / "run")[-1]["step"] == 7
    assert train(config, data, tmp_path / "run")["status"] == "finished"


def test_a_gradient_that_is_not_finite_is_named_too(data, tmp_path):
    trainer = make_trainer(data, tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        TrainingError, match=r"step 1: gradient norm is .*gradients: lm_head\.weight.*no checkpoint yet"
    ):
        trainer.take_step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def test_tensorboard_gets_the_metrics(data, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny_config(steps=4, tensorboard=True), data, tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert "memory/1:2/rows_read" in events.Tags()["scalars"]


def test_tensorboard_that_is_not_installed_is_an_error_that_names_the_extra(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"ultramem-pytorch\[logging\]"):
        train(tiny_config(tensorboard=True), data, tmp_path / "run")


def test_data_too_short_for_a_window_is_refused_before_anything_is_written(data, tmp_path):
    model = dataclasses.replace(tiny_config().model, max_position_embeddings=1024)
    with pytest.raises(ValueError, match="sequence_length"):
        train(tiny_config(model=model, sequence_length=1024), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_data_is_refused(data, tmp_path):
    train(tiny_config(steps=4), data, tmp_path / "run")
    other = write_data(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="begun on other data"):
        train(tiny_config(steps=4), other, tmp_path / "run")


@pytest.mark.parametrize("state", ["full", "small"])
def test_lazy_tables_step_only_the_rows_that_were_read_and_resume_bit_for_bit(data, tmp_path, state):
    optimizer = dataclasses.replace(
        tiny_config().optimizer, lazy_tables=True, table_weight_decay=0.1, table_optimizer_state=state
    )
    model = dataclasses.replace(tiny_config().model, memory_num_keys=40)
    trainer = make_trainer(data, tmp_path / "none", optimizer=optimizer, model=model)
    table = trainer.model.model.tables[0].weight
    before = table.detach().clone()
    trainer.take_step()
    changed = (table != before).any(dim=1).sum()
    assert 0 < changed < len(table) / 2

    config = tiny_config(optimizer=optimizer, model=model, steps=8)
    train(config, data, tmp_path / "unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "take_step", at_step(3, lambda trainer: signal.raise_signal(signal.SIGTERM)))
        train(config, data, tmp_path / "run")
    train(config, data, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")


def test_damaged_data_is_refused_before_anything_is_written(data, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    shard = damaged / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00000\.bin is damaged"):
        train(tiny_config(), damaged, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stays(data, tmp_path, monkeypatch):
    write = Journal.write

    def full(self, record):
        if record["step"] == 13:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", full)
        with pytest.raises(TrainingError, match=r"cannot be written: .*No space left on device"):
            train(tiny_config(), data, tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps == [10]
    assert train(tiny_config(), data, tmp_path / "run")["status"] == "finished"


@pytest.mark.gpu
@pytest.mark.parametrize("lazy_tables", [False, True])
def test_a_gpu_trains_in_bf16_and_goes_on_as_if_nothing_had_been(lazy_tables, data, tmp_path):
    optimizer = dataclasses.replace(tiny_config().optimizer, lazy_tables=lazy_tables)
    config = tiny_config(precision="bf16", optimizer=optimizer)
    summary = train(config, data, tmp_path / "unbroken", device="cuda")
    assert summary["status"] == "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "take_step", at_step(6, lambda trainer: signal.raise_signal(signal.SIGTERM)))
        train(config, data, tmp_path / "run", device="cuda")
    train(config, data, tmp_path / "run", device="cuda")
    expected, resumed = losses(tmp_path / "unbroken"), losses(tmp_path / "run")
    for name in ("loss", "gradient_norm", "table_learning_rate"):
        assert [line.get(name) for line in resumed] == [pytest.approx(line.get(name), rel=1e-3) for line in expected]
