"""The command line: one module a command, imported only when it is called, so that `ultramem --help` answers at once.

A command is a typed function called `command`; tyro reads its flags and help from its signature and docstring. It
returns an exit code, or none for success. What the user got wrong becomes one line on standard error and exit code 2.
"""

import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module, metadata
from pathlib import Path

COMMANDS = {
    "prepare": "turn text into token files, with a tokenizer of yours or one trained on the spot",
    "train": "train a recipe, or go on with a run that was interrupted",
    "compare": "train several recipes on the same tokens and report who did better at what cost",
    "eval": "validation loss, bits per byte and question sets for a trained model",
    "generate": "let a trained model write",
    "export": "write a trained model as a Hugging Face folder",
    "info": "what a recipe costs: parameters, FLOPs a token, bytes read, memory",
}

EXAMPLE = """\
a first model, from text to text:
  ultramem prepare corpus/ --out data/corpus --vocab-size 4096
  ultramem train cpu-ultramem --data data/corpus --out runs/first
  ultramem generate runs/first --prompt "Once upon a time"
"""

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code.

    Args:
        arguments: without the program's name; `sys.argv` if none.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"ultramem {metadata.version('ultramem-pytorch')}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(COMMANDS)}"
        return _fail(f"{name!r} is not a command: {hint}")
    try:
        return _run(name, rest)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _fail(f"{name}: {error.filename}: {error.strerror}" if error.filename else f"{name}: {error}")
    except ValueError as error:
        if not _raised_by_us(error):
            raise
        return _fail(f"{name}: {error}")


def _run(name: str, arguments: list[str]) -> int:
    from ultramem.cli.parsing import parse

    command = import_module(f"ultramem.cli.{name}").command
    return parse(command, f"ultramem {name}", arguments)() or 0


def _help() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ultramem COMMAND ...",
            "",
            "Memory layers for language models: train UltraMem and its rivals, compare them, use them.",
            "",
            *lines,
            "",
            EXAMPLE,
            "`ultramem COMMAND --help` says more, `ultramem info` lists the recipes.",
        ]
    )


def _fail(message: str) -> int:
    print(f"ultramem: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _raised_by_us(error: Exception) -> bool:
    """Whether a `raise` of ours made it: that is a word to the user. Any other ValueError is a bug of somebody's."""
    *_, last = traceback.extract_tb(error.__traceback__)
    ours = Path(last.filename).is_relative_to(Path(__file__).parents[1])
    return ours and (last.line or "").startswith("raise")
