"""A command's arguments from its flags, or one line that says what is wrong with them.

tyro explains a mistake in a box of several lines. Here the box is caught and becomes one line, and a flag that does not
exist gets the nearest names.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from difflib import get_close_matches
from functools import partial, wraps
from io import StringIO
from typing import Any

import tyro

Command = Callable[..., int | None]


def parse(command: Command, program: str, arguments: Sequence[str]) -> Callable[[], int | None]:
    """Read a command's arguments, without running it.

    Args:
        command: its signature says which there are.
        program: its name, for the help.
        arguments: as they were typed.

    Returns:
        The command, its arguments filled in.

    Raises:
        ValueError: a flag does not exist, lacks its value or has an impossible one, or a required one is missing.
        SystemExit: help was asked for, and printed.

    Example:
        >>> parse(train.command, "ultramem train", ["cpu-dense", "--data", "data/x", "--out", "runs/a"])()
    """

    @wraps(command)
    def later(*values: Any, **named: Any) -> Callable[[], int | None]:
        return partial(command, *values, **named)

    box = StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(later, prog=program, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
    unknown = _unknown_flag(arguments, _flags(later, program))
    raise ValueError(f"{unknown or _sentence(box.getvalue())}; `{program} --help` says more")


def _flags(command: Callable[..., Any], program: str) -> list[str]:
    """Every flag that there is: the help names them all."""
    text = StringIO()
    try:
        with redirect_stdout(text):
            tyro.cli(command, prog=program, args=["--help"])
    except SystemExit:
        pass
    return sorted(set(re.findall(r"--[a-z][\w.-]*\w", text.getvalue())))


def _unknown_flag(arguments: Sequence[str], known: Sequence[str]) -> str | None:
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            # `--learning-rate` stands for `--optimizer.learning-rate`: what ends alike is near.
            near = [name for name in known if name.endswith(f".{flag[2:]}")] or get_close_matches(flag, known)
            return f"there is no flag {flag}" + (f": did you mean {' or '.join(near)}?" if near else "")
    return None


def _sentence(box: str) -> str:
    """Take the text out of tyro's box: its frame, the list of types that did not fit and the footer go."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    rows = (line.strip("│| ") for line in plain.splitlines()[1:-1])
    words = " ".join(row for row in rows if row.strip("─-"))
    words = re.sub(r"Got errors:.*?(?=Argument helptext:)", "", words)
    words = re.sub(r" ?For full helptext.*| \(required\)", "", words)
    return re.sub(r"\.? Argument helptext:", "; give", words).rstrip(".")
