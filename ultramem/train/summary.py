"""The few numbers that a run comes down to."""

import resource
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from ultramem.layers.tables import Table
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.train.config import TrainConfig
from ultramem.train.environment import describe_environment
from ultramem.train.records import WRITTEN_ANEW, read_record


def summarise(
    config: TrainConfig, step: int, model: UltraMemForCausalLM, lines: list[dict[str, Any]]
) -> dict[str, Any]:
    """Sum a run up.

    Args:
        config: of the run.
        step: steps taken.
        model: after them.
        lines: the run's metrics (see `ultramem.train.journal.read_journal`).

    Returns:
        Plain values; those without a measurement yet are none. Losses are in nats a token, "tokens_per_second" is the
        median over the metrics' lines, "peak_memory_bytes" the device's, or this process's where the device is a CPU.
    """
    training = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation_loss" in line]
    tables = [module for module in model.modules() if isinstance(module, Table)]
    return {
        "name": config.name,
        "status": "finished" if step == config.steps else f"stopped at step {step}",
        "step": step,
        "steps": config.steps,
        "tokens": step * config.tokens_per_step,
        "training_loss": training[-1]["loss"] if training else None,
        "final_validation_loss": validations[-1]["validation_loss"] if validations else None,
        "best_validation_loss": min((line["validation_loss"] for line in validations), default=None),
        "bits_per_byte": validations[-1]["bits_per_byte"] if validations else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "table_parameters": sum(table.weight.numel() for table in tables),
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in training) if training else None,
        "peak_memory_bytes": _peak_memory_bytes(model.device),
        "seconds": lines[-1]["seconds"] if lines else None,
        "environment": describe_environment(),
    }


def read_summary(path: Path) -> dict[str, Any]:
    """Read ``summary.json`` of a run.

    Raises:
        ValueError: it is damaged.
    """
    return read_record(path, {"name": str, "status": str, "step": int, "peak_memory_bytes": int}, WRITTEN_ANEW)


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
