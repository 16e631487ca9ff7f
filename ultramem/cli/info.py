"""`ultramem info`."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console, Group
from rich.table import Table

from ultramem import accounting, recipes
from ultramem.distributed.communication import Links
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.plots import short_number
from ultramem.train.config import TrainConfig
from ultramem.train.config_json import load_config, load_model_config
from ultramem.train.layout import share_of


def command(
    recipe: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = None,
    /,
    *,
    context: int | None = None,
    world: int | None = None,
    gpus_per_node: int = 8,
    node_bandwidth: float = 450.0,
    network_bandwidth: float = 50.0,
) -> None:
    """Show what a recipe costs, or list all recipes. Nothing is allocated, whatever the size.

    ultramem info ultramem-1.6b-x12 --world 64

    Args:
        recipe: Name of a recipe, or folder of a run; without it all recipes are listed.
        context: Tokens of context for attention and its cache; the model's whole context if not given.
        world: Show what each of so many processes holds and sends in a training step.
        gpus_per_node: Processes of a node.
        node_bandwidth: What a GPU sends to the others of its node, in GB/s.
        network_bandwidth: What a GPU sends to other nodes, in GB/s.
    """
    if recipe is None:
        Console().print(list_recipes())
        return
    is_folder = (Path(recipe) / "config.json").exists()
    config = load_model_config(Path(recipe)) if is_folder else recipes.get(recipe).model
    links = Links(
        gpus_per_node=gpus_per_node, node_bandwidth=node_bandwidth * 1e9, network_bandwidth=network_bandwidth * 1e9
    )
    context = config.max_position_embeddings if context is None else context
    if context < 1:
        raise ValueError(f"--context is {context}: give the number of tokens, 1 or more")
    console = Console()
    if world is None:
        console.print(describe(recipe, config, context))
        return
    if world < 1:
        raise ValueError(f"--world is {world}: give the number of processes, 1 or more")
    run = load_config(Path(recipe) / "run.json") if is_folder else recipes.get(recipe)
    console.print(describe(recipe, config, context), describe_share(run, world, links))


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


def describe_share(run: TrainConfig, world: int, links: Links) -> Table:
    """Build the table of what each of several processes holds and sends."""
    share = share_of(run, world)
    table = Table(f"each of {world} processes", "divided among", "holds", "sends a step", "in about")
    sides = (
        (f"tables ({share.tables})", share.table_shards, share.table_bytes, share.table_traffic),
        ("all but the tables", share.trunk_shards, share.trunk_bytes, share.trunk_traffic),
    )
    for name, shards, held, traffic in sides:
        sent, seconds = sum(part.num_bytes for part in traffic), sum(map(links.seconds, traffic))
        table.add_row(name, f"{shards}", short_bytes(held), short_bytes(round(sent)), f"{seconds:.3g} s")
    table.caption = (
        f"{run.batch_size // world} sequences of {run.sequence_length:,} tokens each; weights, gradients and AdamW in "
        "fp32, activations on top; links alone, without latency (docs/parallelism.md)"
    )
    return table


def short_bytes(count: int) -> str:
    """Write a number of bytes in at most four figures: 3_000_000 as `2.861 MiB`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g} {units[0]}"
