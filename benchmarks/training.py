"""Training speed of UltraMem-151M-x12 against its dense trunk on one GPU: ``python -m benchmarks.training``.

A whole step as `ultramem.train` takes it: bfloat16 autocast, blocks and loss compiled, backward, clipping, both
optimizers. Random tokens, no dropout, no checkpointing. The
floor is the dense step times the ratio of the models' floating-point operations.
"""

import argparse
import gc
import time
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.record import show, write
from ultramem import recipes
from ultramem.accounting import count_flops, count_parameters
from ultramem.distributed.parallelize import compile_regions
from ultramem.layers import Table
from ultramem.models import UltraMemForCausalLM
from ultramem.optim import RowAdamW, clip_gradients, parameter_groups

LENGTH = 2048


class Variant(NamedTuple):
    """A model and what its tables are kept in."""

    recipe: str
    table_dtype: torch.dtype = torch.float32
    state: str = "full"
    lazy: bool = False


VARIANTS = {
    "dense": Variant("dense-151m"),
    "small": Variant("ultramem-151m-x12", torch.bfloat16, "small"),
    "full": Variant("ultramem-151m-x12"),
    "lazy": Variant("ultramem-151m-x12", torch.bfloat16, "small", lazy=True),
    "pkm": Variant("pkm-151m-x10", torch.bfloat16, "small"),
    "moe": Variant("moe-151m-2in32"),
}


def build(variant: Variant, layers: int | None) -> UltraMemForCausalLM:
    """The model, made on the GPU."""
    config = replace(recipes.get(variant.recipe).model, dropout=0.0)
    if layers is not None:
        units = [f"1:{layers}"] if config.memory else []
        config = replace(config, num_hidden_layers=layers, memory_units=units)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = UltraMemForCausalLM(config)
        for module in model.modules():
            if isinstance(module, Table):
                module.sparse = variant.lazy
                module.to(variant.table_dtype)
    model = model.to_empty(device="cuda").train()
    model.initialize_weights()
    return model


def optimizers_of(model: nn.Module, state: str) -> list[torch.optim.Optimizer]:
    """Those of `ultramem.train`."""
    groups = parameter_groups(model, learning_rate=1e-4, weight_decay=0.1)
    trunk = [group for group in groups if group["name"] != "tables"]
    tables = [group for group in groups if group["name"] == "tables"]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(trunk, betas=(0.9, 0.95), fused=True)]
    return [*made, RowAdamW(tables, state=state)] if tables else made  # type: ignore[arg-type]


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One model's row."""
    variant = VARIANTS[name]
    begun = time.perf_counter()
    model = build(variant, arguments.layers)
    if arguments.compile:
        compile_regions(model)
    optimizers = optimizers_of(model, variant.state)
    tokens = torch.randint(model.config.vocab_size, (arguments.batch, LENGTH), device="cuda")
    marks: list[list[torch.cuda.Event]] = []

    def step() -> float:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(5)]
        events[0].record()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        events[1].record()
        loss.backward()
        events[2].record()
        clip_gradients(model.parameters(), 1.0)
        events[3].record()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        events[4].record()
        marks.append(events)
        return loss.item()

    losses = [step() for _ in range(3)]
    print(f"{name}: first steps after {time.perf_counter() - begun:.0f} s, losses {losses}", flush=True)
    marks.clear()
    torch.cuda.reset_peak_memory_stats()
    losses = [step() for _ in range(arguments.steps)]
    torch.cuda.synchronize()
    if not all(loss == loss for loss in losses):
        raise SystemExit(f"{name}: a loss is not a number")
    parts = [[a.elapsed_time(b) for a, b in pairwise(events)] for events in marks]
    times = [median(part[number] for part in parts) for number in range(4)]
    whole = median(events[0].elapsed_time(events[4]) for events in marks)
    numbers = count_parameters(model.config)
    table_bytes = sum(
        tensor.numel() * tensor.element_size()
        for optimizer in optimizers[1:]
        for state in optimizer.state.values()
        for key, tensor in state.items()
        if key != "step"
    )
    return {
        "model": variant.recipe,
        "table": f"{str(variant.table_dtype).removeprefix('torch.')} {variant.state}" if numbers.tables else "",
        "lazy": variant.lazy,
        "compiled": arguments.compile,
        "tokens": tokens.numel(),
        "parameters": numbers.total,
        "flops_per_token": count_flops(model.config, LENGTH).total,
        "step_ms": whole,
        **dict(zip(("forward_ms", "backward_ms", "clip_ms", "optimizers_ms"), times, strict=True)),
        "tokens_per_second": tokens.numel() / whole * 1e3,
        "state_bytes_a_table_parameter": table_bytes / numbers.tables if numbers.tables else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "last_loss": losses[-1],
    }


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row's speed and operations in multiples of the dense model's."""
    dense = next((row for row in rows if row["model"].startswith("dense")), None)
    return [
        row
        | {
            "of_dense": dense and row["tokens_per_second"] / dense["tokens_per_second"],
            "flops_ratio": dense and dense["flops_per_token"] / row["flops_per_token"],
        }
        for row in rows
    ]


def main() -> None:
    """Measures, prints a table and keeps the rows after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=["dense", "small", "full"], help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--batch", type=int, default=16, help="sequences of 2048 tokens")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--layers", type=int, help="blocks, for a quick look; all by default")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.variants:
        rows.append(measure(name, arguments))
        write(with_ratios(rows), "training")
        print("  " + "  ".join(f"{key} {value:.4g}" for key, value in rows[-1].items() if isinstance(value, float)))
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()
    show(with_ratios(rows), title="training")


if __name__ == "__main__":
    main()
