"""`ultramem generate`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ultramem.generate import Sampling, generate
from ultramem.loading import load


def command(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    prompt: tuple[str, ...] = (),
    device: str | None = None,
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),  # noqa: B008
) -> None:
    """Let a trained model continue one prompt or several, and print the text as it is written.

    ultramem generate runs/a --prompt "Once upon a time" "In the beginning" --temperature 0.7 --max-new-tokens 100

    Args:
        run: Folder of a run or an exported model.
        prompt: Texts to continue, one after the other; `-` reads one from standard input, as does giving none.
        device: Where to compute, such as cpu or cuda:1; a GPU where there is one if not given.
        sampling: How the next token is chosen.
    """
    if not prompt and sys.stdin.isatty():
        raise ValueError("no prompt: give --prompt TEXT, or pipe a text in")
    texts = [sys.stdin.read().rstrip("\n") if text == "-" else text for text in prompt or ("-",)]
    model, tokenizer = load(run, device=device)
    for text in texts:
        generate(model, tokenizer, text, sampling, write=_print)
        print(flush=True)


def _print(text: str) -> None:
    print(text, end="", flush=True)
