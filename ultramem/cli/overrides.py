"""Flags for every setting of a run: what is given on the command line, and nothing else, changes the recipe."""

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

import tyro
from transformers import PreTrainedConfig

from ultramem import recipes
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.recipes.registry import given_fields
from ultramem.train.config import OptimizerConfig, ParallelConfig, TrainConfig
from ultramem.train.config_json import config_from_dict, config_to_dict

# The vocabulary and its special tokens are the data's, a cache has no use in training, a dictionary is for a file.
NOT_ON_THE_COMMAND_LINE = (
    "vocab_size",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "use_cache",
    "rope_parameters",
)


def flags_of(kind: type, *, but: tuple[str, ...] = ()) -> Any:
    """Make a TypedDict of a dataclass's fields in which none is required: tyro fills it with the flags that were given.

    Args:
        kind: a dataclass whose fields have docstrings under them, which become the flags' help.
        but: fields that get no flag.
    """
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)} if kind is UltraMemConfig else set()
    help_texts = _field_docstrings(kind)
    flags = {
        field.name: Annotated[field.type, tyro.conf.arg(help=help_texts[field.name], help_behavior_hint="")]
        for field in dataclasses.fields(kind)
        if field.name not in {*inherited, *but}
    }
    return TypedDict(kind.__name__, flags, total=False)  # type: ignore[operator]


def run_flags(*, but: tuple[str, ...] = ()) -> Any:
    """Make the flags of a whole run: its own, `--optimizer.…`, `--parallel.…` and `--model.…`."""
    own = flags_of(TrainConfig, but=("name", "model", "optimizer", "parallel", *but))
    nested = {
        "optimizer": flags_of(OptimizerConfig),
        "parallel": flags_of(ParallelConfig),
        "model": flags_of(UltraMemConfig, but=NOT_ON_THE_COMMAND_LINE),
    }
    hints = get_type_hints(own, include_extras=True)
    return TypedDict("RunFlags", {**hints, **nested}, total=False)  # type: ignore[operator]


def resolve(recipe: str, file: Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """Build a run: the recipe, changed by a JSON file (all of a `run.json` or part of one), changed by flags.

    Raises:
        ValueError: the recipe is unknown, the file is of another recipe or cannot be read, or a field is unknown or
            out of its range.
    """
    base = recipes.get(recipe)
    values = config_to_dict(base) | {"model": given_fields(base.model)}
    if file is not None:
        changes = _read_json(file)
        if changes.get("name", recipe) != recipe:
            raise ValueError(
                f"--config {file} is of the recipe {changes['name']!r}, not of {recipe!r}: "
                "name that recipe, or take the field 'name' out of the file"
            )
        values = _merge(values, changes)
    return config_from_dict(_merge(values, flags))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"--config {file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {file} holds no settings: it should be an object like a run's run.json")
    return values


def _merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        nested = isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
        merged[name] = _merge(values[name], change) if nested else change
    return merged


def _field_docstrings(kind: type) -> dict[str, str]:
    """Read the string under each field, which Python itself does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: inspect.cleandoc(str(text.value.value))
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
