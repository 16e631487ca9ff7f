"""Training speed of UltraMem-151M-x12 against its dense trunk on one GPU: ``python -m benchmarks.training``.

A whole step, compiled as `ultramem.train` does it (`benchmarks.training_step`). The floor is the dense step times the
ratio of the models' floating-point operations. Where a step's time goes, `benchmarks.training_profile` tells.
"""

import argparse
import gc
import time
from statistics import median
from typing import Any

import torch

from benchmarks.record import show, write
from benchmarks.training_step import PARTS, TrainingStep, Variant
from ultramem.accounting import count_flops, count_parameters
from ultramem.train.determinism import deterministic_algorithms

VARIANTS = {
    "dense": Variant("dense-151m"),
    "small": Variant("ultramem-151m-x12", torch.bfloat16, "small"),
    "full": Variant("ultramem-151m-x12"),
    "lazy": Variant("ultramem-151m-x12", torch.bfloat16, "small", lazy=True),
    "pkm": Variant("pkm-151m-x10", torch.bfloat16, "small"),
    "moe": Variant("moe-151m-2in32"),
}


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One model's row."""
    variant = VARIANTS[name]
    begun = time.perf_counter()
    config = variant.config()
    if arguments.layers is not None:
        units = [f"1:{arguments.layers}"] if config.memory else []
        config = variant.config(num_hidden_layers=arguments.layers, memory_units=units)
    step = TrainingStep(variant, config, batch=arguments.batch, compiled=arguments.compile, device="cuda")
    losses = [step.take() for _ in range(3)]
    print(f"{name}: first steps after {time.perf_counter() - begun:.0f} s, losses {losses}", flush=True)
    torch.cuda.reset_peak_memory_stats()
    timed = [step.milliseconds() for _ in range(arguments.steps)]
    times = {f"{part}_ms": median(each[part] for each in timed) for part in ("step", *PARTS)}
    numbers = count_parameters(config)
    table_bytes = sum(
        tensor.numel() * tensor.element_size()
        for optimizer in step.optimizers[1:]
        for state in optimizer.state.values()
        for key, tensor in state.items()
        if key != "step"
    )
    return {
        "model": variant.recipe,
        "table": f"{str(variant.table_dtype).removeprefix('torch.')} {variant.state}" if numbers.tables else "",
        "lazy": variant.lazy,
        "compiled": arguments.compile,
        "tokens": step.tokens.numel(),
        "parameters": numbers.total,
        "flops_per_token": count_flops(config, variant.length).total,
        **times,
        "tokens_per_second": step.tokens.numel() / times["step_ms"] * 1e3,
        "state_bytes_a_table_parameter": table_bytes / numbers.tables if numbers.tables else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "last_loss": step.take(),
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
        with deterministic_algorithms():  # as the trainer
            rows.append(measure(name, arguments))
        write(with_ratios(rows), "training")
        print("  " + "  ".join(f"{key} {value:.4g}" for key, value in rows[-1].items() if isinstance(value, float)))
        gc.collect()
        torch.cuda.empty_cache()
    show(with_ratios(rows), title="training")


if __name__ == "__main__":
    main()
