"""A run as JSON: exactly the fields of TrainConfig, no more and no fewer.

Writing it needs nothing; reading it needs cattrs, which refuses what it does not know.
"""

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.train.config import TrainConfig
from ultramem.train.records import WRITTEN_ANEW, read_record


def model_to_dict(model: UltraMemConfig) -> dict[str, Any]:
    """Return the model's own fields, without what transformers adds to every configuration."""
    inherited = {entry.name for entry in dataclasses.fields(PreTrainedConfig)}
    own = [entry.name for entry in dataclasses.fields(model) if entry.name not in inherited]
    everything = model.to_dict()
    return {name: everything[name] for name in own}


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return a run as plain JSON values; `load_config` reads them back."""
    values = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    nested = {name: dataclasses.asdict(values[name]) for name in ("optimizer", "parallel")}
    return values | {"model": model_to_dict(config.model)} | nested


def with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Add to a run's JSON the settings that have come since it was recorded: each had its default.

    Args:
        recorded: what `config_to_dict` gave, of this version or an earlier one.

    Returns:
        All fields of today, as JSON gives them back.

    Example:
        >>> with_defaults({"steps": 9, "optimizer": {"learning_rate": 1e-3}})["optimizer"]["clip_norm"]
        1.0
    """
    settings = dataclasses.fields(TrainConfig)
    plain = {entry.name: entry.default for entry in settings if entry.default is not dataclasses.MISSING}
    made = {
        entry.name: dataclasses.asdict(entry.default_factory())
        for entry in settings
        if entry.default_factory is not dataclasses.MISSING
    }
    parts = made | {"model": model_to_dict(UltraMemConfig())}
    nested = {name: part | recorded.get(name, {}) for name, part in parts.items()}
    return json.loads(json.dumps(plain | recorded | nested))


def load_config(path: Path) -> TrainConfig:
    """Read a run from JSON, as ``run.json`` of a run folder holds it.

    Args:
        path: the file.

    Raises:
        ValueError: the file cannot be read, or a field is unknown, missing, of the wrong type or out of its range.

    Example:
        >>> config = load_config(Path("runs/a/run.json"))
        >>> dataclasses.replace(config, seed=1).seed
        1
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a run's JSON: {error}") from error
    try:
        return config_from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_model_config(folder: Path) -> UltraMemConfig:
    """Read ``config.json`` of a run or of an exported model.

    Raises:
        ValueError: there is none, it is damaged, or it is of another kind of model.

    Example:
        >>> load_model_config(Path("runs/a")).hidden_size
        128
    """
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} is neither a run's folder nor an exported model: it has no config.json")
    remedy = WRITTEN_ANEW if (folder / "run.json").exists() else "export again, or restore it"
    kind = read_record(path, {"model_type": str}, remedy)["model_type"]
    if kind != UltraMemConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {kind!r}: {UltraMemConfig.model_type!r} is wanted")
    try:
        return UltraMemConfig.from_pretrained(folder)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


def config_from_dict(values: dict[str, Any]) -> TrainConfig:
    """Make a run of plain JSON values, the inverse of `config_to_dict`.

    Raises:
        ValueError: a field is unknown (the nearest names are given), missing, of the wrong type or out of its range.
    """
    import cattrs  # only readers of JSON need it

    if not isinstance(values, dict):
        raise ValueError(f"a run is an object with fields, not {type(values).__name__}")
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _exactly)
    converter.register_structure_hook(UltraMemConfig, _structure_model)
    try:
        return converter.structure(values, TrainConfig)
    except cattrs.BaseValidationError as error:
        problems = (problem.removesuffix(" @ run") for problem in cattrs.transform_error(error, "run", _describe))
        raise ValueError("; ".join(problems)) from error


def _exactly(value: Any, kind: type) -> Any:
    """Take a value as it is: cattrs alone would read the text "false" as true."""
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise TypeError(f"{value!r} is not of type {kind.__name__}")


def _structure_model(values: dict[str, Any], _: type) -> UltraMemConfig:
    return UltraMemConfig(**values)


def _unknown_field(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=3)
    return f"unknown field {name!r}" + (f", did you mean {' or '.join(nearest)}?" if nearest else "")


def _describe(error: BaseException, _: type | None) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [entry.name for entry in dataclasses.fields(error.cl)]
        return "; ".join(_unknown_field(name, known) for name in sorted(error.extra_fields))
    if isinstance(error, KeyError):
        return f"field {error.args[0]!r} is missing"
    return str(error)
