"""`ultramem export`."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from ultramem.export import export


def command(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    out: Path,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Write a trained model as a Hugging Face folder, tokenizer included.

    Load it with `import ultramem.models` and `AutoModelForCausalLM.from_pretrained(folder)`, or with
    `trust_remote_code=True` wherever the package is installed.

    ultramem export runs/a --out hf/a

    Args:
        run: Folder of a run.
        out: The new folder; an existing one is never overwritten.
        dtype: Of the stored weights.
    """
    export(run, out, getattr(torch, dtype))
    print(out)
