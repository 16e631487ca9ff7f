"""`ultramem info`."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console, Group
from rich.table import Table

from ultramem import accounting, recipes
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.plots import short_number
from ultramem.train.config_json import load_model_config


def command(
    recipe: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = None,
    /,
    *,
    context: int | None = None,
) -> None:
    """Show what a recipe costs, or list all recipes. Nothing is allocated, whatever the size.

    ultramem info ultramem-1.6b-x12

    Args:
        recipe: Name of a recipe, or folder of a run; without it all recipes are listed.
        context: Tokens of context for attention and its cache; the model's whole context if not given.
    """
    if recipe is None:
        Console().print(list_recipes())
        return
    is_folder = (Path(recipe) / "config.json").exists()
    config = load_model_config(Path(recipe)) if is_folder else recipes.get(recipe).model
    context = config.max_position_embeddings if context is None else context
    if context < 1:
        raise ValueError(f"--context is {context}: give the number of tokens, 1 or more")
    Console().print(describe(recipe, config, context))


def list_recipes() -> Table:
    """Build the table of all recipes."""
    table = Table("recipe", "parameters", "active", "what it is", title="Parameters without embeddings", box=None)
    for name in recipes.names():
        config = recipes.get(name).model
        counts = (accounting.count_parameters(config), accounting.count_active_parameters(config))
        table.add_row(name, *(short_number(count.without_embeddings) for count in counts), recipes.describe(name))
    return table


def describe(name: str, config: UltraMemConfig, context: int) -> Group:
    """Build the tables of one model's costs."""
    total, active = accounting.count_parameters(config), accounting.count_active_parameters(config)
    parameters = Table("parameters", "all", "active in a token", title=name, title_justify="left")
    for category in ("attention", "ffn", "memory", "tables", "vectors"):
        parameters.add_row(category, *(short_number(getattr(count, category)) for count in (total, active)))
    parameters.add_section()
    parameters.add_row("without embeddings", *(short_number(count.without_embeddings) for count in (total, active)))
    parameters.add_row("embeddings", *(short_number(count.embeddings) for count in (total, active)))
    parameters.add_row("total", *(short_number(count.total) for count in (total, active)))

    flops = accounting.count_flops(config, context)
    costs = Table("cost", "", f"with a context of {context:,} tokens")
    for name, count, remark in (
        ("forward FLOPs a token", flops.per_token, "matrices and retrieval; comparisons go by this"),
        ("  attention over the context", flops.attention, "on top, at the mean position"),
        ("  output head", flops.head, "on top"),
    ):
        costs.add_row(name, short_number(count, figures=4), remark)
    for name, count, remark in (
        ("training", accounting.training_bytes(config), "weights, gradients, AdamW in fp32; activations on top"),
        ("inference", accounting.inference_bytes(config, context), "weights and one sequence's cache, in bf16"),
        ("read a decoded token", accounting.bytes_read_per_token(config, context), "active weights and cache, in bf16"),
    ):
        costs.add_row(name, short_bytes(count), remark)
    return Group(parameters, costs)


def short_bytes(count: int) -> str:
    """Write a number of bytes in at most four figures: 3_000_000 as `2.861 MiB`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g} {units[0]}"
