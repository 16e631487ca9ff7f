"""`ultramem train`."""

from pathlib import Path
from typing import Annotated, Any

import tyro
from torch.distributed import is_torchelastic_launched

from ultramem.cli.overrides import resolve, run_flags
from ultramem.train.trainer import train

INTERRUPTED = 130

RunFlags: Any = run_flags()


def command(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *,
    data: Path,
    out: Path,
    config: Path | None = None,
    device: str | None = None,
    flags: Annotated[RunFlags, tyro.conf.arg(name="")],
) -> int:
    """Train a recipe on prepared data, or go on with a run that was interrupted.

    The same command resumes: a run goes on from its last checkpoint, with the same next losses. Ctrl-C stops after the
    step under way and keeps it. Settings are the recipe's, changed by --config, changed by the flags below.

    ultramem train cpu-ultramem --data data/corpus --out runs/a --steps 100 --optimizer.learning-rate 1e-3

    Args:
        recipe: Name of the recipe; `ultramem info` lists them.
        data: Folder made by `ultramem prepare`.
        out: Folder of the run; made if it is not there.
        config: JSON with settings: all of a run.json, or only those to change.
        device: Where to compute, such as cpu or cuda:1; a GPU where there is one if not given.
    """
    summary = train(resolve(recipe, config, flags), data, out, device=device)
    # torchrun would take another exit code for a fault, and start a run again that was asked to stop.
    return 0 if summary["status"] == "finished" or is_torchelastic_launched() else INTERRUPTED
