"""The study's section on speed, from what the kernels' own benchmarks have kept as CSV."""

import csv
from collections.abc import Callable
from pathlib import Path

from benchmarks.study.page.tables import markdown_table

Line = dict[str, str]


def kept_lines(folder: Path, name: str) -> list[Line]:
    """The rows of one benchmark; none where nothing is kept."""
    path = folder / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def of_common_trunks(lines: list[Line]) -> list[Line]:
    """Decoding steps with a trunk that every model was measured with."""
    models: dict[str, set[str]] = {}
    for line in lines:
        models.setdefault(line["trunk"], set()).add(line["model"])
    every = {line["model"] for line in lines}
    return [line for line in lines if models[line["trunk"]] == every]


def fastest_steps(lines: list[Line], model: str) -> dict[int, Line]:
    """A model's fastest step at each batch, of those with a trunk that every model was measured with."""
    by_time = sorted(of_common_trunks(lines), key=lambda line: -float(line["step_ms"]))
    return {int(line["batch"]): line for line in by_time if line["model"] == model}


def decode(lines: list[Line]) -> str:
    """A decoding step of models of 1.6B active parameters with UltraMem's fastest trunk, each at its fastest."""
    ultramem = fastest_steps(lines, "ultramem")
    trunks = {batch: line["trunk"] for batch, line in ultramem.items()}
    with_its_trunk = [line for line in lines if line["trunk"] == trunks.get(int(line["batch"]))]
    dense, moe = (fastest_steps(with_its_trunk, model) for model in ("dense", "moe"))
    return markdown_table(
        ["batch", "dense, ms", "UltraMem, ms", "of dense", "mixture of experts, ms", "of UltraMem"],
        [
            [
                f'<a id="decode-{batch}"></a>{batch}',
                f"{float(dense[batch]['step_ms']):.2f}",
                f"{float(line['step_ms']):.2f}",
                f"{float(line['of_dense']):.2f}",
                f"{float(moe[batch]['step_ms']):.2f}",
                f"{float(line['moe_is_slower']):.2f}",
            ]
            for batch, line in sorted(ultramem.items())
        ],
    )


def decode_table(lines: list[Line]) -> str:
    """The same step as the table grows."""
    return markdown_table(
        ["UltraMem's rows", "parameters", "batch", "ms", "of the least"],
        [
            [
                f'<a id="decode-rows-{line["table_rows"]}"></a>{int(line["table_rows"]):,}',
                f"{int(line['parameters']) / 1e9:.1f}B",
                line["batch"],
                f"{float(line['step_ms']):.2f}",
                f"{float(line['of_the_least']):.3f}",
            ]
            for line in lines
        ],
    )


def training(lines: list[Line]) -> str:
    """A training step of models of 151M active parameters."""
    return markdown_table(
        [
            "training",
            "parameters",
            "ms a step",
            "tokens/s",
            "of dense",
            "what FLOPs alone would give",
            "peak memory, GB",
        ],
        [
            [
                f'<a id="training-{line["model"]}"></a>{line["model"]}'
                + (f", tables {line['table']}" if line["table"] else ""),
                f"{int(line['parameters']) / 1e6:,.0f}M",
                f"{float(line['step_ms']):.0f}",
                f"{float(line['tokens_per_second']):,.0f}",
                f"{float(line['of_dense']):.2f}",
                f"{float(line['flops_ratio']):.2f}",
                f"{float(line['peak_gb']):.1f}",
            ]
            for line in lines
        ],
    )


def memory_layer(lines: list[Line]) -> str:
    """One memory layer in decode."""
    return markdown_table(
        ["one memory layer, batch", "us", "plain composition, us", "times faster"],
        [
            [
                f'<a id="layer-{line["batch"]}"></a>{line["batch"]}',
                f"{float(line['layer_us']):.0f}",
                f"{float(line['composition_us']):.0f}",
                f"{float(line['composition_ratio']):.1f}",
            ]
            for line in lines
        ],
    )


TABLES: dict[str, Callable[[list[Line]], str]] = {
    "decode": decode,
    "decode_table": decode_table,
    "memory_layer": memory_layer,
    "training": training,
}


def speed(folder: Path) -> str:
    """All that is kept, each table with its command and what it was measured on."""
    parts = []
    for name, table in TABLES.items():
        if lines := kept_lines(folder, name):
            on = lines[0]
            parts.append(
                f"{table.__doc__.strip()} `benchmarks/results/{name}.csv`: {on['hardware']}, torch {on['torch']}, "
                f"commit {on['commit']}, {on['date']}.\n\n{table(lines)}"
            )
    return "\n".join(parts)
