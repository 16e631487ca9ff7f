"""Reading back what a run or an export wrote as JSON: what is damaged is named, with what would do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WRITTEN_ANEW = "the same `ultramem train` command writes it where it is not there"


def read_record(path: Path, fields: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """Read an object from a JSON file.

    Args:
        path: the file.
        fields: those that it must have, with their types; others are as good as they are.
        remedy: what a user may do about a file that is damaged or gone.

    Raises:
        ValueError: the file is missing, no JSON, or lacks a field.

    Example:
        >>> read_record(Path("runs/a/summary.json"), {"step": int}, WRITTEN_ANEW)["step"]
        400
    """
    values = read_json(path, remedy)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged (it holds no object with fields): {remedy}")
    for name, kind in fields.items():
        if not isinstance(values.get(name), kind):
            raise ValueError(f"{path} is damaged (its field {name!r} is {values.get(name)!r}): {remedy}")
    return values


def read_json(path: Path, remedy: str) -> Any:
    """Read any JSON value, as `read_record` does an object."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
