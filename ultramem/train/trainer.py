"""The training loop: from a position in the data to a step of both optimizers, and what is kept of it."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ultramem.data.loader import TokenLoader, validation_batches
from ultramem.data.tokens import TokenDataset
from ultramem.distributed.agreement import any_rank, gather, is_first_rank, rank_and_count, sum_over_ranks, together
from ultramem.distributed.lost_ranks import name_lost_ranks
from ultramem.distributed.mesh import run_mesh
from ultramem.distributed.parallelize import begin_micro_batch, parallelize
from ultramem.distributed.process_group import process_group
from ultramem.distributed.tables import finish_table_gradients
from ultramem.layers.tables import Table
from ultramem.layers.undrawn_table import UndrawnTable
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.optim import RowAdamW, clip_factor, clipped_step, gradient_norm, parameter_groups
from ultramem.train.atomic import write_json
from ultramem.train.checkpoint import Checkpoints, resume, save_state
from ultramem.train.config import TrainConfig
from ultramem.train.determinism import deterministic_algorithms, seed_step
from ultramem.train.device import choose_device
from ultramem.train.display import show_summary
from ultramem.train.interruption import StopRequest
from ultramem.train.journal import read_journal
from ultramem.train.layout import choose_tables
from ultramem.train.logbook import Logbook
from ultramem.train.metrics import validate
from ultramem.train.run_folder import RunFolder, open_run
from ultramem.train.summary import read_summary, summarise


class TrainingError(ValueError):
    """Training cannot go on; the message says where it stopped, why, and what to do."""


def train(
    config: TrainConfig, data: str | Path, out: str | Path, *, device: torch.device | str | None = None
) -> dict[str, Any]:
    """Train a model, or go on where the same call was interrupted.

    SIGTERM and SIGINT end the run after the step under way, with a checkpoint. The same arguments give the same
    numbers, interrupted or not: bit for bit on a CPU. Where torchrun started several processes, each takes its share
    of every batch, they stop together, and what one of them raises all raise.

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
        >>> summary = train(recipes.get("cpu-ultramem"), "data/x", "runs/a")
        >>> summary["status"], summary["final_validation_loss"]
        ('finished', 3.21)
    """
    with process_group(choose_device(device), config.collective_timeout_seconds) as device, name_lost_ranks():
        return _train(config, data, Path(out), device)


def _train(config: TrainConfig, data: str | Path, out: Path, device: torch.device) -> dict[str, Any]:
    with together():
        training, validation = TokenDataset.open(data, "train"), TokenDataset.open(data, "validation")
        config = replace(config, model=_model_for(training, config.model))
        # Data that is too short or damaged is refused before anything is written.
        ranks = rank_and_count()
        loader = TokenLoader(training, config.sequence_length, config.batch_size, config.seed, *ranks)
        validation_batches(validation, config.sequence_length, config.batch_size, 1, *ranks)
        if is_first_rank() and not RunFolder(out).config.exists():
            training.verify()
            validation.verify()
    try:
        with ExitStack() as run, deterministic_algorithms():
            with together():
                folder = run.enter_context(open_run(out, config, training)) if is_first_rank() else RunFolder(out)
                summary = read_summary(folder.summary) if folder.summary.exists() else None
            summary = gather(summary)[0]
            if summary and summary["step"] >= config.steps:
                if is_first_rank():
                    show_summary(summary)
                return summary
            if config.compile:
                torch.compiler.reset()  # a process has room for few models' code, and an earlier run's would count
            return Trainer(config, folder, loader, validation, device).run()
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}; once it can, the same command goes on") from error


def _model_for(data: TokenDataset, model: UltraMemConfig) -> UltraMemConfig:
    """Give a model the vocabulary of its data: a text begins after a separator and ends at the next."""
    separator = data.separator_id
    return replace(model, vocab_size=data.vocab_size, bos_token_id=separator, eos_token_id=separator)


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
        loader: batches to learn from.
        validation: tokens to measure on.
        device: where to compute.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        loader: TokenLoader,
        validation: TokenDataset,
        device: torch.device,
    ):
        self.config, self.folder, self.device = config, folder, device
        self.loader, self.validation = loader, validation
        self.rank, self.num_ranks = rank_and_count()
        self.micro_batch_size = config.micro_batch_size or config.batch_size
        layout, table_style = config.parallel, choose_tables(config, self.num_ranks)
        mesh = run_mesh(
            device.type,
            trunk_shards=layout.trunk_shards if layout.trunk == "shard" else 1,
            table_shards=layout.table_shards if table_style != "replicate" else 1,
            timeout_seconds=config.collective_timeout_seconds,
        )
        torch.manual_seed(config.seed)
        model = UltraMemForCausalLM(config.model, table_class=Table if mesh is None else UndrawnTable)
        self.model = model.to(device).train()  # type: ignore[arg-type]
        for module in self.model.modules():
            if isinstance(module, Table):
                module.sparse = config.optimizer.lazy_tables
        parallelize(
            self.model,
            mesh,
            table_style="columns" if table_style == "columns" else "rows",
            activation_checkpointing=config.activation_checkpointing,
            compile=config.compile,
        )
        self.optimizers = _build_optimizers(self.model, config)
        self.learning_rate = config.optimizer.learning_rate_schedule(config.steps)
        self.table_multiplier = config.optimizer.table_multiplier(config.steps)
        self.checkpoints = Checkpoints(folder.checkpoints, keep=config.keep_checkpoints)
        self.step = resume(self.checkpoints, self.model, self.optimizers, skip_damaged=config.skip_damaged_checkpoints)

    def run(self) -> dict[str, Any]:
        """Train to the last step, or until a signal asks to stop; return the summary."""
        config = self.config
        step_seconds: list[float] = []
        with Logbook.open(self.folder, config, self.step) as logbook, StopRequest() as stop:
            stopping = False
            while self.step < config.steps and not stopping:
                started = time.perf_counter()
                result = self.take_step()
                step_seconds.append(time.perf_counter() - started)
                logbook.advance(self.step, result.loss, config.tokens_per_step / step_seconds[-1])
                finished, stopping = self.step == config.steps, any_rank(stop.requested)
                if finished or self.step % config.log_every_steps == 0:
                    logbook.record(self.step, self._line(result, statistics.fmean(step_seconds)))
                    step_seconds.clear()
                if finished or self.step % config.evaluate_every_steps == 0:
                    logbook.record(self.step, self.evaluate())
                if finished or stopping or self.step % config.checkpoint_every_steps == 0:
                    save_state(
                        self.checkpoints,
                        self.step,
                        self.model,
                        self.optimizers,
                        background=config.checkpoint_in_background,
                    )
            self.checkpoints.finish()
        summary: dict[str, Any] = {}
        with together():
            if is_first_rank():
                summary = summarise(config, self.step, self.model, read_journal(self.folder.metrics))
                if self.step == config.steps:
                    write_json(self.folder.summary, summary)
                show_summary(summary)
        return gather(summary)[0]

    def take_step(self) -> StepResult:
        """Learn from the next batch.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are as they were before the step.
        """
        self._set_learning_rates()
        seed_step(self.config.seed, self.step, self.rank)
        # All windows are of one length, so a micro-batch's share of the sequences is its share of the tokens.
        windows = self.loader.batch(self.step)
        losses = torch.zeros(3, device=self.device)
        micro_batches = windows.split(self.micro_batch_size)
        for number, micro_batch in enumerate(micro_batches, start=1):
            begin_micro_batch(self.model, last=number == len(micro_batches))
            micro_batch = micro_batch.to(self.device, non_blocking=True)
            share = len(micro_batch) / len(windows)
            with self.autocast():
                output = self.model(input_ids=micro_batch, labels=micro_batch, use_cache=False)
            (output.loss * share).backward()
            losses += share * torch.stack([output.loss, output.cross_entropy, output.auxiliary_loss]).detach()
        losses = sum_over_ranks(losses) / self.num_ranks
        finish_table_gradients(self.model)
        norm = gradient_norm(self.model.parameters())
        factor = clip_factor(norm, self.config.optimizer.clip_norm or math.inf)
        result = StepResult(*torch.cat([losses, norm[None]]).tolist())
        self._check_finite(result)
        for optimizer in self.optimizers:
            clipped_step(optimizer, factor)
            optimizer.zero_grad()
        self.step += 1
        return result

    def evaluate(self) -> dict[str, Any]:
        """Measure the model on the validation split."""
        return validate(
            self.model,
            self.validation_windows(),
            tokens_per_byte=self.validation.num_tokens / self.validation.num_bytes,
            autocast=self.autocast,
        )

    def validation_windows(self) -> Iterator[Tensor]:
        """This process's part of what `evaluate` measures: ``(B, T + 1)`` int64, in micro-batches."""
        config = self.config
        batches = validation_batches(
            self.validation,
            config.sequence_length,
            config.batch_size,
            config.evaluate_batches,
            self.rank,
            self.num_ranks,
        )
        return (micro_batch for batch in batches for micro_batch in batch.split(self.micro_batch_size))

    def autocast(self) -> AbstractContextManager:
        """The context in which the model runs."""
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _set_learning_rates(self) -> None:
        trunk_rate = self.config.optimizer.learning_rate * self.learning_rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                tables = group["name"] == "tables"
                group["lr"] = trunk_rate * self.table_multiplier(self.step) if tables else trunk_rate

    def _check_finite(self, result: StepResult) -> None:
        wrong = [name for name, value in result._asdict().items() if not math.isfinite(value)]
        if not wrong:
            return
        named = list(self.model.named_parameters())
        weights = _of_all_ranks(name for name, weight in named if not _finite(weight))
        gradients = _of_all_ranks(name for name, weight in named if not _finite(weight.grad))
        self.checkpoints.finish()
        newest = gather(self.checkpoints.newest_step)[0]
        kept = f"{self.checkpoints.path(newest)} is intact" if newest else "there is no checkpoint yet"
        raise TrainingError(
            f"step {self.step + 1}: {wrong[0].replace('_', ' ')} is {getattr(result, wrong[0])}; "
            f"first weights that are not finite: {', '.join(weights[:3]) or 'none'}; "
            f"first gradients: {', '.join(gradients[:3]) or 'none'}. Nothing was updated; {kept}: "
            "try a lower optimizer.learning_rate or a longer optimizer.warmup_steps in another folder"
        )

    def _line(self, result: StepResult, seconds_per_step: float) -> dict[str, Any]:
        rates = {group["name"]: group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups}
        return {
            "tokens": self.step * self.config.tokens_per_step,
            "loss": result.loss,
            "cross_entropy": result.cross_entropy,
            "auxiliary_loss": result.auxiliary_loss,
            "learning_rate": rates["matrices"],
            "table_learning_rate": rates.get("tables"),
            "gradient_norm": result.gradient_norm,
            "tokens_per_second": self.config.tokens_per_step / seconds_per_step,
        }


def _build_optimizers(model: UltraMemForCausalLM, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """One optimizer for the trunk, and one for the tables where there are any."""
    settings = config.optimizer
    groups = parameter_groups(
        model,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        table_weight_decay=settings.table_weight_decay,
    )
    trunk = [group for group in groups if group["name"] != "tables"]
    tables = [group for group in groups if group["name"] == "tables"]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(trunk, betas=settings.betas, eps=settings.epsilon, fused=True)
    ]
    if tables:
        optimizers.append(
            RowAdamW(
                tables,
                betas=settings.betas,
                eps=settings.epsilon,
                state=settings.table_optimizer_state,
                lazy_share=settings.lazy_share,
            )
        )
    return optimizers


def _of_all_ranks(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for part in gather(list(names)) for name in part))


@torch.no_grad()
def _finite(tensor: Tensor | None) -> bool:
    if tensor is None:
        return True
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    return bool(values.isfinite().all())
