"""`ultramem compare`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from ultramem import report
from ultramem.cli.overrides import resolve, run_flags
from ultramem.compare import compare, compute_warnings
from ultramem.recipes import matching

RunFlags: Any = run_flags(but=("seed",))


def command(
    recipes: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE...")],
    /,
    *,
    data: Path,
    out: Path,
    seeds: tuple[int, ...] = (0,),
    config: Path | None = None,
    device: str | None = None,
    flags: Annotated[RunFlags, tyro.conf.arg(name="")],
) -> None:
    """Train several recipes on the same tokens in the same order, and report who did better at what cost.

    Each run has its own folder under --out; the same command goes on where it stopped, and is done in seconds once all
    are finished. Writes comparison.json and report.html, a page with tables and plots that needs no network. Recipes
    whose FLOPs a token differ by more than 5 percent are reported as not comparable.

    ultramem compare cpu-dense cpu-moe cpu-pkm cpu-ultramem --data data/corpus --out runs/rivals --seeds 0 1 2

    Args:
        recipes: Names of the recipes, or quoted patterns such as 'ladder-cpu-*'; `ultramem info` lists them.
        data: Folder made by `ultramem prepare`.
        out: Folder of the comparison; made if it is not there.
        seeds: Each recipe is trained once with each of these.
        config: JSON with settings that change all recipes.
        device: Where to compute, such as cpu or cuda:1; a GPU where there is one if not given.
    """
    configs = [resolve(recipe, config, flags) for pattern in recipes for recipe in matching(pattern)]
    for warning in compute_warnings(configs):
        print(f"warning: {warning}", file=sys.stderr)
    comparison = compare(configs, data=data, out=out, seeds=seeds, device=device)
    page = report.write(comparison, out)
    console = Console()
    console.print(report.render_table(comparison))
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
