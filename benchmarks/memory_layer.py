"""One whole memory layer of UltraMem-1.6B-x12 in decode, and its steps: ``python -m benchmarks.memory_layer``.

From the normed hidden state of one token a sequence, and what is kept of the three before it, to the layer's output and
what is kept for the next token (the composition keeps nothing). Times are
microseconds in a CUDA graph over several layers in turn, so that no weight is found in the L2 cache, as between the
blocks of a model. The floor is the bytes that the layer must read, at the speed of a device copy.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.lookup import gather_and_einsum
from benchmarks.ops.retrieval import plain
from benchmarks.ops.timing import copy_speed, microseconds_in_graph, num_bytes, ratios
from benchmarks.record import show, write
from ultramem import ops
from ultramem.layers import Table, UltraMemLayer
from ultramem.layers.query import ConvState
from ultramem.ops.select_keys import kernels as select

HIDDEN, KEYS = 2048, 1789
SIZES = {"num_keys": KEYS, "key_size": 800, "value_size": 1024, "top_k": 42, "expansion": 4}
LAYERS = 4  # 46 MB each


def build(layers: int) -> tuple[list[UltraMemLayer], Table]:
    """Layers that read one table, in bfloat16."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        made = [UltraMemLayer(HIDDEN, **SIZES).bfloat16() for _ in range(layers)]
        return made, Table(KEYS**2, SIZES["value_size"], std=0.1, dtype=torch.bfloat16)


def composition(layer: UltraMemLayer, table: Table, hidden: Tensor, state: ConvState) -> Tensor:
    """What one would write in plain PyTorch, with keys that are normalised already."""
    sequence = torch.cat([state.inputs, hidden], dim=1)
    convolved = (sequence * layer.query.conv.weight[:, 0].T).sum(dim=1)
    query = layer.query.proj(convolved).view(-1, *layer.query.shape)
    query = F.rms_norm(query, query.shape[-1:]) * layer.query.norm_weight
    keys, filters = layer.retrieval.keys(), layer.retrieval.filter_vectors()
    values, slots = plain(query, keys, filters, layer.retrieval.cores.float(), layer.retrieval.top_k)
    weights = values.transpose(1, 2).flatten(2)
    pooled = gather_and_einsum(table.weight, slots.flatten(1), weights, layer.retrieval.num_keys)
    return layer.out_proj(pooled.flatten(1))


def steps(layer: UltraMemLayer, table: Table, hidden: Tensor, state: ConvState) -> dict[str, Callable[[], object]]:
    """The layer, step by step."""
    retrieval = layer.retrieval
    query = layer.query(hidden, state)
    keys, filters = retrieval.keys(query.dtype, layer.query.norm_weight), retrieval.filter_vectors()
    filtered = select._filter(query, keys, filters)
    scores, indices = ops.select_keys(query, keys, filters, retrieval.num_candidates)
    values, slots = ops.rescore(scores, indices, retrieval.cores, retrieval.num_keys, retrieval.top_k)
    pooled = table(slots, values, layer.placement).flatten(1)
    convolved = layer.query.conv(hidden, state)
    return {
        "convolution_us": lambda: layer.query.conv(hidden, state),
        "query_projection_us": lambda: layer.query.proj(convolved),
        "query_us": lambda: layer.query(hidden, state),
        "filter_us": lambda: select._filter(query, keys, filters),
        "select_us": lambda: select._select(*filtered, query, keys, filters, scores, indices),
        "rescore_us": lambda: ops.rescore(scores, indices, retrieval.cores, retrieval.num_keys, retrieval.top_k),
        "lookup_us": lambda: table(slots, values, layer.placement),
        "output_projection_us": lambda: layer.out_proj(pooled),
    }


@torch.no_grad()
def row(batch: int, layers: list[UltraMemLayer], table: Table, copy: float, compiled: bool) -> dict[str, Any]:
    """One batch."""
    hidden = torch.randn(batch, 1, HIDDEN, device="cuda", dtype=torch.bfloat16)
    kept = torch.randn(len(layers), batch, HIDDEN, 3, device="cuda", dtype=torch.bfloat16).transpose(2, 3)
    inputs = [(layer, table, hidden + n, ConvState(kept[n])) for n, layer in enumerate(layers)]

    def in_turn(function: Callable[..., object]) -> float:
        def all_layers() -> None:
            for arguments in inputs:
                function(*arguments)

        all_layers()
        return microseconds_in_graph(all_layers, len(inputs))

    parts = [steps(*arguments) for arguments in inputs]

    def part_in_turn(name: str) -> float:
        calls = [part[name] for part in parts]
        return microseconds_in_graph(lambda: [call() for call in calls], len(calls))

    layer = layers[0]
    rows = batch * layer.retrieval.top_k * 2 * SIZES["value_size"] * 2
    floor = (num_bytes(*layer.parameters(), hidden, hidden, kept[0], kept[0]) + rows) / copy
    ours = in_turn(lambda layer, *rest: layer(rest[1], rest[0], rest[2]).hidden_states)
    times = {name: part_in_turn(name) for name in parts[0]}
    peers: dict[str, float | None] = {"composition": in_turn(composition), "composition_compiled": None}
    if compiled:
        peers["composition_compiled"] = in_turn(torch.compile(composition, dynamic=False))
    times = {"floor_us": floor, "layer_us": ours} | times | {f"{name}_us": time for name, time in peers.items()}
    return {"batch": batch} | times | ratios(ours, floor, peers)


def main() -> None:
    """Measures, prints a table and keeps the rows after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--compiled", nargs="*", type=int, default=[64], help="batches with a compiled peer, 20 s each")
    arguments = parser.parse_args()
    copy = copy_speed()
    print(f"{torch.cuda.get_device_name()}: copies {copy / 1e6:.2f} TB/s read and written", flush=True)
    layers, table = build(LAYERS)
    rows = []
    for batch in arguments.batches:
        rows.append(row(batch, layers, table, copy, batch in arguments.compiled))
        write(rows, "memory_layer")
        print("  " + "  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items() if value), flush=True)
    show(rows, title="one memory layer in decode")


if __name__ == "__main__":
    main()
