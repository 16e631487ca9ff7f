"""The training loop: from a position in the data to a step of both optimizers, and what is kept of it."""

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ultramem.data.loader import TokenLoader
from ultramem.data.tokens import TokenDataset
from ultramem.layers.tables import Table
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.optim import RowAdamW, clip_gradients, parameter_groups
from ultramem.train.atomic import write_json
from ultramem.train.checkpoint import Checkpoints, load_state, save_state
from ultramem.train.config import TrainConfig
from ultramem.train.display import Display
from ultramem.train.interruption import StopRequest
from ultramem.train.journal import Journal, read_journal
from ultramem.train.metrics import validate
from ultramem.train.run_folder import RunFolder, describe_environment, open_run


class TrainingError(ValueError):
    """Training cannot go on; the message says where it stopped, why, and what to do."""


def train(config: TrainConfig, data: Path, out: Path, *, device: torch.device | str | None = None) -> dict[str, Any]:
    """Train a model, or go on where the same call was interrupted.

    SIGTERM and SIGINT end the run after the step under way, with a checkpoint. The same arguments give the same numbers,
    interrupted or not: bit for bit on a CPU.

    Args:
        config: the run. Its model gets the vocabulary of the data.
        data: folder made by ``ultramem prepare``.
        out: the run's folder (see `ultramem.train.run_folder.RunFolder`).
        device: none takes a GPU where there is one.

    Returns:
        The summary, which a finished run also keeps in ``summary.json``: "status" ("finished", or "stopped at step N"),
        losses, counts of parameters and tokens, speed, peak memory, versions.

    Raises:
        ValueError: the folder holds something else or a run with other settings; the data does not serve.
        CheckpointError: a checkpoint cannot be written, or the newest is damaged.
        TrainingError: the loss or the gradient is not finite, or the disk fails.

    Example:
        >>> summary = train(recipes.get("ultramem-tiny"), Path("data/x"), Path("runs/a"))
        >>> summary["status"], summary["final_validation_loss"]
        ('finished', 3.21)
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training, validation = TokenDataset.open(data, "train"), TokenDataset.open(data, "validation")
    config = replace(config, model=replace(config.model, vocab_size=training.vocab_size))
    try:
        with open_run(out, config, training.header, training.tokenizer_path) as run, _deterministic():
            return Trainer(config, run, training, validation, device).run()
    except OSError as error:
        raise TrainingError(f"cannot write to {out}: {error.strerror or error}; make room, then run again") from error


class StepResult(NamedTuple):
    """What a step gave; losses are means over its tokens."""

    loss: float
    cross_entropy: float
    auxiliary_loss: float
    gradient_norm: float


class Trainer:
    """A run's model, optimizers and data, at a step.

    Args:
        config: the run, its vocabulary that of the data.
        folder: where it is kept, open.
        training: tokens to learn from.
        validation: tokens to measure on.
        device: where to compute.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        training: TokenDataset,
        validation: TokenDataset,
        device: torch.device,
    ):
        self.config, self.folder, self.device = config, folder, device
        self.loader = TokenLoader(training, config.sequence_length, config.batch_size, config.seed)
        micro_batch_size = config.micro_batch_size or config.batch_size
        self.micro_batch_size = micro_batch_size
        self.validation_loader = TokenLoader(validation, config.sequence_length, micro_batch_size, seed=0)
        self.tokens_per_byte = validation.num_tokens / validation.num_bytes
        torch.manual_seed(config.seed)
        self.model = UltraMemForCausalLM(config.model).to(device).train()
        if config.activation_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.optimizers = _build_optimizers(self.model, config)
        self.learning_rate = config.optimizer.learning_rate_schedule(config.steps)
        self.table_multiplier = config.optimizer.table_multiplier(config.steps)
        self.checkpoints = Checkpoints(folder.checkpoints, keep=config.keep_checkpoints)
        self.checkpoints.clean()
        self.step = self.checkpoints.newest_step or 0
        if self.step:
            load_state(self.checkpoints, self.step, self.model, self.optimizers)

    def run(self) -> dict[str, Any]:
        """Train to the last step, or until a signal asks to stop; return the summary."""
        config, journal = self.config, Journal(self.folder.metrics, step=self.step)
        tensorboard = self.folder.tensorboard if config.tensorboard else None
        begun = time.perf_counter() - journal.seconds
        step_seconds: list[float] = []
        with (
            Display(config.name, step=self.step, steps=config.steps, tensorboard=tensorboard) as display,
            StopRequest() as stop,
        ):

            def record(values: dict[str, Any]) -> None:
                values = {"step": self.step, **values, "seconds": time.perf_counter() - begun}
                journal.write(values)
                display.record(values)

            while self.step < config.steps and not stop.requested:
                started = time.perf_counter()
                result = self.take_step()
                step_seconds.append(time.perf_counter() - started)
                display.advance(self.step, result.loss, config.tokens_per_step / step_seconds[-1])
                finished = self.step == config.steps
                if finished or self.step % config.log_every_steps == 0:
                    record(self._line(result, statistics.fmean(step_seconds)))
                    step_seconds.clear()
                if finished or self.step % config.evaluate_every_steps == 0:
                    record(self.evaluate())
                if finished or stop.requested or self.step % config.checkpoint_every_steps == 0:
                    save_state(self.checkpoints, self.step, self.model, self.optimizers)
            summary = self._summary()
            if self.step == config.steps:
                write_json(self.folder.summary, summary)
        display.summarise(summary)
        return summary

    def take_step(self) -> StepResult:
        """Learn from the next batch.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are as they were before the step.
        """
        self._set_learning_rates()
        # All windows are of one length, so a micro-batch's share of the sequences is its share of the tokens.
        windows = self.loader.batch(self.step)
        losses = torch.zeros(3, device=self.device)
        for micro_batch in windows.split(self.micro_batch_size):
            micro_batch = micro_batch.to(self.device, non_blocking=True)
            share = len(micro_batch) / len(windows)
            with self._autocast():
                output = self.forward(input_ids=micro_batch, labels=micro_batch, use_cache=False)
            (output.loss * share).backward()
            losses += share * torch.stack([output.loss, output.cross_entropy, output.auxiliary_loss]).detach()
        norm = clip_gradients(self.model.parameters(), self.config.optimizer.clip_norm or math.inf)
        result = StepResult(*torch.cat([losses, norm[None]]).tolist())
        self._check_finite(result)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return result

    def evaluate(self) -> dict[str, Any]:
        """Measure the model on the validation split."""
        available = max(1, self.validation_loader.num_batches)
        count = min(self.config.evaluate_batches, available)
        batches = (self.validation_loader.batch(position) for position in range(count))
        return validate(self.model, batches, tokens_per_byte=self.tokens_per_byte, autocast=self._autocast)

    def _autocast(self) -> AbstractContextManager:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _set_learning_rates(self) -> None:
        trunk_rate = self.config.optimizer.learning_rate * self.learning_rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                tables = group["name"] == "tables"
                group["lr"] = trunk_rate * self.table_multiplier(self.step) if tables else trunk_rate
