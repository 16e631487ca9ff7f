"""Writes the tables of docs/parallelism.md: what rows, columns and replicas send, and about how long it takes.

python -m benchmarks.communication                          writes the page, for an H100's links
python -m benchmarks.communication --network-bandwidth 25   prints the tables for other links, in GB/s

Nothing is measured: the bytes are those of `ultramem.train.layout`, which tests hold to the collectives.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.study.page.tables import markdown_table
from ultramem import recipes
from ultramem.accounting import count_parameters
from ultramem.distributed.communication import Links
from ultramem.recipes.registry import with_model
from ultramem.train.config import ParallelConfig, TrainConfig
from ultramem.train.layout import Share, share_of

PAGE = Path(__file__).parents[1] / "docs/parallelism.md"
BEGIN, END = "<!-- communication:begin -->\n", "<!-- communication:end -->"
GPUS = (8, 64, 512)
GPU_BYTES = 80e9
NARROW = 128


def sizes() -> dict[str, TrainConfig]:
    """The models of the tables; the second has the first one's trunk, and more rows in each of its tables."""
    published = recipes.get("ultramem-1.6b-x12")
    return {
        "1.6B-x12": published,
        "120B": with_model(published, memory_num_keys=4400),
        f"1.6B-x12 with values of {NARROW}": with_model(
            published, memory_value_size=NARROW, memory_num_keys=5060, memory_num_cores=1
        ),
    }


def layouts(num_gpus: int, gpus_per_node: int) -> dict[str, ParallelConfig]:
    """How tables may be divided; the trunk is divided in each node, and repeated in the others."""
    trunk_shards = min(num_gpus, gpus_per_node)
    found = {style: ParallelConfig(tables=style, trunk_shards=trunk_shards) for style in ("columns", "rows")}
    if num_gpus > gpus_per_node:
        found |= {
            f"{style} in a node, replicas of nodes": replace(layout, table_shards=gpus_per_node)
            for style, layout in found.items()
        }
    return found | {"replicate": ParallelConfig(tables="replicate", trunk_shards=trunk_shards)}


def table(config: TrainConfig, links: Links) -> str:
    """One model's table."""
    rows = []
    for num_gpus in GPUS:
        shares = {
            name: share_of(replace(config, parallel=layout), num_gpus)
            for name, layout in layouts(num_gpus, links.gpus_per_node).items()
            if layout.tables != "columns" or (layout.table_shards or num_gpus) <= config.model.memory_value_size
        }
        times = {name: sum(map(links.seconds, share.table_traffic)) for name, share in shares.items() if fits(share)}
        for name, share in shares.items():
            sent = sum(traffic.num_bytes for traffic in share.table_traffic)
            seconds = f"{sum(map(links.seconds, share.table_traffic)):.2f} s"
            verdict = (
                "does not fit" if name not in times else "**fastest**" if name == min(times, key=times.get) else ""
            )
            rows.append((f"{num_gpus}", name, gigabytes(share.table_bytes), gigabytes(sent), seconds, verdict))
        trunk = next(iter(shares.values()))
        sent = sum(traffic.num_bytes for traffic in trunk.trunk_traffic)
        seconds = f"{sum(map(links.seconds, trunk.trunk_traffic)):.2f} s"
        rows.append((f"{num_gpus}", "the trunk, in a node", gigabytes(trunk.trunk_bytes), gigabytes(sent), seconds, ""))
    return markdown_table(("GPUs", "tables", "a GPU holds", "sends a step", "in", ""), rows)


def fits(share: Share) -> bool:
    """Whether a GPU has room for what it holds, though activations may still be too much."""
    return share.trunk_bytes + share.table_bytes < GPU_BYTES


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.3g} GB" if count < 1e12 else f"{count / 1e9:,.0f} GB"


def tables(links: Links) -> str:
    """The page's part."""
    parts = []
    for name, config in sizes().items():
        model = config.model
        parts.append(
            f"### {name}\n\n"
            f"{count_parameters(model).total / 1e9:.1f}B parameters, {len(model.memory_units)} tables of "
            f"{model.memory_num_keys**2 / 1e6:.1f}M rows of {model.memory_value_size}; "
            f"{config.batch_size * config.sequence_length / 1e6:.1f}M tokens a step.\n\n{table(config, links)}"
        )
    assumed = (
        f"Predicted for nodes of {links.gpus_per_node} GPUs of {GPU_BYTES / 1e9:.0f} GB, each of which sends "
        f"{links.node_bandwidth / 1e9:g} GB/s within its node and {links.network_bandwidth / 1e9:g} GB/s beyond it "
        "(`python -m benchmarks.communication`).\n"
    )
    return "\n".join([assumed, *parts])


def fill(page: str, part: str) -> str:
    """The page with the tables replaced."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + part + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--node-bandwidth", type=float, default=450)
    parser.add_argument("--network-bandwidth", type=float, default=50)
    given = parser.parse_args()
    links = Links(
        gpus_per_node=given.gpus_per_node,
        node_bandwidth=given.node_bandwidth * 1e9,
        network_bandwidth=given.network_bandwidth * 1e9,
    )
    if links == Links():
        PAGE.write_text(fill(PAGE.read_text(), tables(links)))
    else:
        print(tables(links))


if __name__ == "__main__":
    main()
