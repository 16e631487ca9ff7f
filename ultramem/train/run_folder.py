"""The folder of a run: what lies where, and who may go on in it."""

import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultramem.data.tokens import TokenDataset
from ultramem.train.atomic import write_json
from ultramem.train.checkpoint_files import Checkpoints
from ultramem.train.config import TrainConfig
from ultramem.train.config_json import config_to_dict
from ultramem.train.environment import describe_environment

# How often something is written and how the same numbers are computed may change while a run is under way.
FREE_FIELDS = frozenset(
    {
        "activation_checkpointing",
        "checkpoint_every_steps",
        "checkpoint_in_background",
        "collective_timeout_seconds",
        "compile",
        "evaluate_every_steps",
        "keep_checkpoints",
        "log_every_steps",
        "skip_damaged_checkpoints",
        "tensorboard",
    }
)


class RunFolder:
    """Names of a run's files.

    ``run.json`` the TrainConfig; ``config.json`` the model's, as transformers reads it; ``environment.json`` the
    versions at each start; ``data.json`` what the data is; ``tokenizer.json``; ``metrics.jsonl``; ``checkpoints/``;
    ``tensorboard/``; ``summary.json`` once the run is finished.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "run.json"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.tokenizer = path / "tokenizer.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.summary = path / "summary.json"

    def record_start(self, step: int) -> None:
        """Add to ``environment.json`` what the steps from here on depend on."""
        starts = json.loads(self.environment.read_text()) if self.environment.exists() else []
        write_json(self.environment, [*starts, {"step": step, **describe_environment()}])


@contextmanager
def open_run(path: Path, config: TrainConfig, data: TokenDataset) -> Iterator[RunFolder]:
    """Begin a run in a new folder, or go on in the folder that it began; nobody else may meanwhile.

    Args:
        path: the folder; its parents are made.
        config: the run as it is to be recorded.
        data: what it trains on.

    Raises:
        ValueError: the folder holds something else, another run, or is in use; nothing in it was changed.
    """
    run = RunFolder(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: a run needs a folder")
    if path.exists() and not run.config.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise ValueError(f"{path} is not empty and not a run's folder (it has no run.json): choose another")
    path.mkdir(parents=True, exist_ok=True)
    with _alone_in(path):
        if run.config.exists():
            _check_same_run(run, config, data)
        write_json(run.config, config_to_dict(config))
        write_json(run.data, _identity(data))
        config.model.save_pretrained(path)
        shutil.copyfile(data.tokenizer_path, run.tokenizer)
        yield run


@contextmanager
def _alone_in(path: Path) -> Iterator[None]:
    with open(path / ".lock", "w") as lock:  # the system lets go of it however the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path} is in use by another training process: wait for it or stop it") from error
        yield


def _check_same_run(run: RunFolder, config: TrainConfig, data: TokenDataset) -> None:
    recorded = _read(run.config)
    current = json.loads(json.dumps(config_to_dict(config)))
    may_change_length = _same_rates_so_far(run, recorded.get("steps", config.steps), config)
    free = FREE_FIELDS | ({"steps"} if may_change_length else set())
    differences = _differences(recorded, current, free)
    if differences:
        raise ValueError(
            f"{run.path} holds a run with other settings ({'; '.join(differences)}): "
            "go on with the recorded ones, or choose another folder"
        )
    if run.data.exists():
        differences = _differences(_read(run.data), _identity(data), frozenset())
        if differences:
            raise ValueError(f"{run.path} was begun on other data ({differences[0]}): choose another folder")


def _identity(data: TokenDataset) -> dict[str, Any]:
    """What two copies of the same prepared data agree on, checksums included, wherever they were made of what."""
    names = ("dtype", "vocab_size", "separator", "separator_id", "tokenizer_sha256", "splits")
    header = dataclasses.asdict(data.header)
    return {name: header[name] for name in names}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): choose another folder, or repair it") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a run's record: choose another folder")
    return values


def _differences(
    recorded: dict[str, Any], current: dict[str, Any], free: frozenset[str], prefix: str = ""
) -> list[str]:
    """Say of every field that changed what it was and what it is."""
    found = []
    for name in [*recorded, *(name for name in current if name not in recorded)]:
        before, now = recorded.get(name), current.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, free, f"{prefix}{name}.")
        elif before != now and prefix + name not in free:
            found.append(f"{prefix}{name} was {before!r}, now it is {now!r}")
    return found


def _same_rates_so_far(run: RunFolder, steps: int, config: TrainConfig) -> bool:
    """Whether the steps already taken would have had the same learning rates in a run of the new length."""
    taken = range(Checkpoints(run.checkpoints).newest_step or 0)
    return all(
        schedule(steps)(step) == schedule(config.steps)(step)
        for schedule in (config.optimizer.learning_rate_schedule, config.optimizer.table_multiplier)
        for step in taken
    )
