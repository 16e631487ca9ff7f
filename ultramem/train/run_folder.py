"""The folder of a run: what lies where, and who may go on in it."""

import dataclasses
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultramem.data.tokens import TokenDataset
from ultramem.train.atomic import write_json, write_text
from ultramem.train.checkpoint_files import Checkpoints
from ultramem.train.config import TrainConfig
from ultramem.train.config_json import config_to_dict, with_defaults
from ultramem.train.environment import describe_environment
from ultramem.train.records import WRITTEN_ANEW, read_json, read_record

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
        "parallel",
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
        self.model = path / "config.json"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.tokenizer = path / "tokenizer.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.summary = path / "summary.json"

    def record_start(self, step: int) -> None:
        """Add to ``environment.json`` what the steps from here on depend on."""
        write_json(self.environment, [*read_starts(self.environment), {"step": step, **describe_environment()}])


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Read ``environment.json``; no file is no start yet.

    Raises:
        ValueError: it is damaged.
    """
    remedy = "remove it; it only tells with which versions the run was made"
    starts = read_json(path, remedy) if path.exists() else []
    if not isinstance(starts, list):
        raise ValueError(f"{path} is damaged (it holds no list): {remedy}")
    return starts


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
        write_text(run.model, config.model.to_json_string())
        write_text(run.tokenizer, data.tokenizer_path.read_text(encoding="utf-8"))
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
    fields = {"name": str, "model": dict, "optimizer": dict, "steps": int}
    recorded = with_defaults(read_record(run.config, fields, "restore it, or choose another folder"))
    current = json.loads(json.dumps(config_to_dict(config)))
    taken = Checkpoints(run.checkpoints).newest_step or 0
    may_change_length = _same_rates(range(taken), recorded["steps"], config)
    free = FREE_FIELDS | ({"steps"} if may_change_length else set())
    differences = _differences(recorded, current, free)
    if differences:
        raise ValueError(
            f"{run.path} holds a run with other settings ({'; '.join(differences)}): "
            "go on with the recorded ones, or choose another folder"
        )
    if config.steps < taken:
        raise ValueError(
            f"steps is {config.steps}, but {run.path} has taken {taken} already: "
            f"give --steps {taken} or more, or choose another folder"
        )
    if run.data.exists():
        begun_on = read_record(run.data, {"separator": str, "splits": dict}, WRITTEN_ANEW)
        differences = _differences(begun_on, _identity(data), frozenset())
        if differences:
            raise ValueError(f"{run.path} was begun on other data ({differences[0]}): choose another folder")


def _identity(data: TokenDataset) -> dict[str, Any]:
    """What two copies of the same prepared data agree on, checksums included, wherever they were made of what."""
    names = ("dtype", "vocab_size", "separator", "separator_id", "tokenizer_sha256", "splits")
    header = dataclasses.asdict(data.header)
    return {name: header[name] for name in names}


def _differences(
    recorded: dict[str, Any], current: dict[str, Any], free: frozenset[str], prefix: str = ""
) -> list[str]:
    """Say of every field that changed what it was and what it is."""
    found = []
    for name in [*recorded, *(name for name in current if name not in recorded)]:
        before, now = recorded.get(name), current.get(name)
        if prefix + name in free:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, free, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name} was {before!r}, now it is {now!r}")
    return found


def _same_rates(taken: range, steps: int, config: TrainConfig) -> bool:
    """Whether the steps already taken would have had the same learning rates in a run of the new length."""
    return all(
        schedule(steps)(step) == schedule(config.steps)(step)
        for schedule in (config.optimizer.learning_rate_schedule, config.optimizer.table_multiplier)
        for step in taken
    )
