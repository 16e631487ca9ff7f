"""The comparison as a page to open in a browser and as a table for the terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ultramem.compare import Comparison, Mean
from ultramem.plots import NUM_COLOURS, Point, Series, line_plot, short_number
from ultramem.train.atomic import write_json, write_text

TRAINING_POINTS = 40
LOSS = "validation loss"
IN_TERMINAL = ("parameters", "active", "FLOPs/token", "ms/step", LOSS, "bits/byte")
LEGEND = (
    "Parameters are counted without embeddings; active are those that one token passes through, rows read included. "
    "FLOPs are a forward pass's, without the output head and the part of attention that grows with the context; "
    "relative is their ratio to the first recipe's. The loss is in nats a token, ± the standard deviation over seeds."
)


def write(comparison: Comparison, out: Path) -> Path:
    """Write `comparison.json` and `report.html` into the folder `out`; return the page's path."""
    write_json(out / "comparison.json", asdict(comparison))
    page = out / "report.html"
    write_text(page, render_html(comparison))
    return page


def render_html(comparison: Comparison) -> str:
    """Render the self-contained report: no script, no font and no image from elsewhere."""
    page = Environment(loader=PackageLoader("ultramem", "."), autoescape=True, undefined=StrictUndefined)
    names = [recipe.name for recipe in comparison.recipes]
    return page.get_template("report.html.jinja").render(
        title=" · ".join(names) if len(names) <= 4 else f"{len(names)} recipes compared",
        summary=_summary(comparison),
        comparison=comparison,
        rows=_rows(comparison),
        legend=LEGEND,
        num_colours=NUM_COLOURS,
        plots=[
            {"caption": "Validation loss against tokens seen", "svg": _plot(comparison, "validation", "tokens")},
            {"caption": "Validation loss against time spent", "svg": _plot(comparison, "validation", "seconds")},
            {"caption": "Training loss, smoothed", "svg": _plot(comparison, "training", "tokens")},
        ],
    )


def render_table(comparison: Comparison) -> Group:
    """Build the terminal's table, with the warnings that belong to it below."""
    table = Table(title=_summary(comparison), title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 0))
    table.add_column("recipe", overflow="fold", min_width=12)
    for column in IN_TERMINAL:
        table.add_column(column.replace("/", "/\n").replace(" ", "\n"), justify="right", no_wrap=True)
    for name, cells in _rows(comparison).items():
        shown = [Text(cells[column].text, style="bold green" if cells[column].best else "") for column in IN_TERMINAL]
        shown[IN_TERMINAL.index(LOSS)].append(cells[LOSS].spread)
        table.add_row(name, *shown)
    return Group(table, *(Text(f"warning: {warning}", style="yellow") for warning in comparison.warnings))


def _summary(comparison: Comparison) -> str:
    seeds = ", ".join(str(seed) for seed in comparison.seeds)
    return (
        f"{short_number(comparison.tokens)} tokens in {comparison.steps} steps, the same in the same order for each; "
        f"seed{'s' if len(comparison.seeds) > 1 else ''} {seeds}"
    )


class _Cell(NamedTuple):
    text: str
    spread: str = ""
    best: bool = False


def _rows(comparison: Comparison) -> dict[str, dict[str, _Cell]]:
    """Each recipe's cells by their columns."""
    best = min(recipe.validation_loss.mean for recipe in comparison.recipes)
    first = comparison.recipes[0].flops_per_token
    return {
        recipe.name: {
            "parameters": _Cell(short_number(recipe.parameters)),
            "active": _Cell(short_number(recipe.active_parameters)),
            "FLOPs/token": _Cell(short_number(recipe.flops_per_token)),
            "relative": _Cell(f"{recipe.flops_per_token / first:.3f}"),
            "ms/step": _mean(recipe.seconds_per_step, "{:.0f}", scale=1e3),
            "tokens/s": _mean(recipe.tokens_per_second, "{:.0f}"),
            LOSS: _mean(recipe.validation_loss, "{:.3f}")._replace(
                best=comparison.comparable and recipe.validation_loss.mean == best
            ),
            "bits/byte": _mean(recipe.bits_per_byte, "{:.3f}"),
        }
        for recipe in comparison.recipes
    }


def _mean(value: Mean, form: str, scale: float = 1.0) -> _Cell:
    spread = f" ± {form.format(value.deviation * scale)}" if len(value.values) > 1 else ""
    return _Cell(form.format(value.mean * scale), spread)


def _plot(comparison: Comparison, curve: str, axis: str) -> str:
    series = []
    for recipe in comparison.recipes:
        runs = [[(getattr(m, axis), m.loss) for m in getattr(run, curve)] for run in recipe.runs]
        if curve == "training":
            runs = [_thin(run, TRAINING_POINTS) for run in runs]
        series.append(Series(recipe.name, _pointwise_mean(runs), runs if len(runs) > 1 else ()))
    x_label = {"tokens": "tokens", "seconds": "seconds of training"}[axis]
    return line_plot(series, x_label=x_label, y_label=f"{curve} loss")


def _pointwise_mean(runs: Sequence[Sequence[Point]]) -> list[Point]:
    """Average runs measured at the same steps; a run that stopped early shortens the mean."""
    return [(fmean(x for x, _ in points), fmean(y for _, y in points)) for points in zip(*runs, strict=False)]


def _thin(points: Sequence[Point], count: int) -> list[Point]:
    """Replace a long curve by at most `count` means of neighbours."""
    size = max(1, -(-len(points) // count))
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in block), fmean(y for _, y in block)) for block in blocks]
