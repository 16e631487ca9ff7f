"""Trains one model and says what came of it. No checkpoints: a run takes minutes, and a study resumes between runs."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import machine
from benchmarks.study.copies import loss_of_new_tokens, losses_apart
from ultramem.accounting import count_active_parameters, count_flops, count_parameters
from ultramem.data.loader import TokenLoader
from ultramem.data.tokens import TokenDataset
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig
from ultramem.train.config_json import config_to_dict
from ultramem.train.determinism import deterministic_algorithms
from ultramem.train.run_folder import RunFolder
from ultramem.train.trainer import Trainer, TrainingError

TRAINING_POINTS = 40


def train_and_measure(
    config: TrainConfig, data: Path, *, afterwards: Callable[[UltraMemForCausalLM], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Train a model with the library's own trainer, and return what a row of the results holds.

    Args:
        config: the run; its vocabulary becomes that of the data.
        data: folder made by `ultramem prepare`.
        afterwards: measures the trained model once more; its values are the row's "afterwards".

    Returns:
        Plain values: "name", "seed", "settings", counts, the curves "training" and "validation" (tokens, seconds of
        training, loss in nats a token; at validations "new_loss" too), the final losses, of new and of repeated tokens
        too, the memories' health, the speed, and what it ran on. Where a loss was not finite the run ends,
        "ended_early" says so, and the last validation is of the weights before.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, validation = TokenDataset.open(data, "train"), TokenDataset.open(data, "validation")
    config = with_model(config, vocab_size=training.vocab_size)
    loader = TokenLoader(training, config.sequence_length, config.batch_size, config.seed)
    gc.collect()  # a model trained before in this process
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step_seconds: list[float] = []
    training_losses: list[float] = []
    validations: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch, deterministic_algorithms():
        trainer = Trainer(config, RunFolder(Path(scratch)), loader, validation, device)
        ended_early = {}
        while trainer.step < config.steps and not ended_early:
            begun = time.perf_counter()
            try:
                training_losses.append(trainer.take_step().cross_entropy)
            except TrainingError as error:
                ended_early = {"ended_early": str(error)}
            step_seconds.append(time.perf_counter() - begun)
            if trainer.step % config.evaluate_every_steps == 0 or trainer.step == config.steps or ended_early:
                tokens = trainer.step * config.tokens_per_step
                validations.append({"tokens": tokens, **_validated(trainer)})
        with torch.compiler.set_stance("force_eager"):  # questions are of every length
            more = {"afterwards": afterwards(trainer.model)} if afterwards else {}
    # The first steps compile kernels; the median step is what training costs.
    seconds_per_step = median(step_seconds)
    return {
        "name": config.name,
        "seed": config.seed,
        "tokens": trainer.step * config.tokens_per_step,
        "validation_loss": validations[-1]["validation_loss"],
        "bits_per_byte": validations[-1]["bits_per_byte"],
        **{name: validations[-1][name] for name in ("new_loss", "repeated_loss", "repeated_share")},
        "training_loss": _tail_mean(training_losses),
        "parameters": count_parameters(config.model).without_embeddings,
        "table_parameters": count_parameters(config.model).tables,
        "active_parameters": count_active_parameters(config.model).without_embeddings,
        "flops_per_token": count_flops(config.model, config.sequence_length).per_token,
        "seconds_per_step": seconds_per_step,
        "seconds": sum(step_seconds),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "validation": [
            _point(line["tokens"], line["validation_loss"], config, seconds_per_step) | {"new_loss": line["new_loss"]}
            for line in validations
        ],
        "training": [
            _point(step * config.tokens_per_step, loss, config, seconds_per_step)
            for step, loss in _thinned(training_losses)
        ],
        "memory": validations[-1].get("memory"),
        "settings": config_to_dict(config),
        "data": {"training_tokens": training.num_tokens, "vocabulary": training.vocab_size},
        **ended_early,
        **more,
        **machine(),
    }


def _validated(trainer: Trainer) -> dict[str, Any]:
    """What the trainer measures, and the loss apart from what can be copied."""
    measured = trainer.evaluate()
    new = loss_of_new_tokens(trainer.model, trainer.validation_windows(), trainer.autocast)
    return measured | losses_apart(measured["validation_loss"], *new)


def _point(tokens: int, loss: float, config: TrainConfig, seconds_per_step: float) -> dict[str, float]:
    return {"tokens": tokens, "seconds": tokens / config.tokens_per_step * seconds_per_step, "loss": loss}


def _tail_mean(losses: list[float]) -> float:
    """The mean over the last tenth of the steps: single batches are noisy."""
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def _thinned(losses: list[float]) -> list[tuple[int, float]]:
    """At most `TRAINING_POINTS` means of neighbours, each at its last step."""
    size = -(-len(losses) // TRAINING_POINTS)
    blocks = [(min(start + size, len(losses)), losses[start : start + size]) for start in range(0, len(losses), size)]
    return [(step, sum(block) / len(block)) for step, block in blocks]
