"""Where the time of a training step goes, eager and compiled: ``python -m benchmarks.training_profile``.

Dense, UltraMem and expert models of 25M, the first two of 151M too, 32,768 tokens a step, with the trainer's
deterministic kernels. First every part of a step is timed, unprofiled; then one step is profiled, part by part.
`training_profile.csv` has a row a model, `training_kernels.csv` the kernels that took most of each part.
"""

import argparse
import gc
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import show, write
from benchmarks.training_step import PARTS, TrainingStep, Variant
from ultramem.train.determinism import deterministic_algorithms

VARIANTS = {
    "dense-25m": Variant("gpu-25m-dense", length=512),
    "ultramem-25m": Variant("gpu-25m-ultramem", length=512),
    "moe-25m": Variant("gpu-25m-moe", length=512),
    "dense-151m": Variant("dense-151m"),
    "ultramem-151m": Variant("ultramem-151m-x12", torch.bfloat16, "small"),
}
WARM_UP_STEPS = 3
KERNELS_A_PART = 15


def measure(
    name: str, *, compiled: bool, tokens: int, steps: int, device: str, **changes: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A model's row, and those of its kernels.

    Args:
        name: one of `VARIANTS`.
        compiled: or eager.
        tokens: a step.
        steps: timed ones.
        device: "cuda", or "cpu", where operators stand for kernels.
        changes: of the model's configuration.
    """
    begun = time.perf_counter()
    variant = VARIANTS[name]
    batch = max(1, tokens // variant.length)
    step = TrainingStep(variant, variant.config(**changes), batch=batch, compiled=compiled, device=device)
    for _ in range(WARM_UP_STEPS):
        step.take()
    start_seconds = time.perf_counter() - begun
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timed = [step.milliseconds() for _ in range(steps)]
    times = {f"{part}_ms": median(each[part] for each in timed) for part in ("step", *PARTS)}
    kernels = list(profiled(step))
    about = {"model": name, "compiled": compiled}
    launches = {f"{part}_launches": sum(row["launches"] for row in kernels if row["part"] == part) for part in PARTS}
    row = {
        **about,
        "tokens": step.tokens.numel(),
        **times,
        "tokens_per_second": step.tokens.numel() / times["step_ms"] * 1e3,
        **launches,
        "kernels_ms": sum(each["milliseconds"] for each in kernels),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
        "start_seconds": start_seconds,
        "loss": step.take(),
    }
    longest = [
        about | each
        for part in PARTS
        for each in sorted((each for each in kernels if each["part"] == part), key=lambda each: -each["milliseconds"])[
            :KERNELS_A_PART
        ]
    ]
    return row, longest


def profiled(step: TrainingStep) -> Iterator[dict[str, Any]]:
    """Take a step; every kernel of every part, its launches and milliseconds."""
    on_gpu = step.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    parts = step.parts()
    for _ in PARTS:
        with profile(activities=[activity]) as profiler:
            part = next(parts)
            if on_gpu:
                torch.cuda.synchronize()
        for event in profiler.key_averages():
            if (event.device_type == DeviceType.CUDA) != on_gpu:
                continue
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            yield {
                "part": part,
                "kernel": event.key[:160],
                "launches": event.count,
                "milliseconds": microseconds / 1e3,
            }


def _step_of(kernel: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    return next(
        row["step_ms"] for row in rows if (row["model"], row["compiled"]) == (kernel["model"], kernel["compiled"])
    )


def main() -> None:
    """Measures, and keeps what is there after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*VARIANTS], help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--tokens", type=int, default=32768, help="a step")
    parser.add_argument("--steps", type=int, default=8, help="timed ones")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    kernels: list[dict[str, Any]] = []
    for name in arguments.models:
        for compiled in (False, True):
            with deterministic_algorithms():  # as the trainer
                row, longest = measure(
                    name, compiled=compiled, tokens=arguments.tokens, steps=arguments.steps, device="cuda"
                )
            rows.append(row)
            kernels.extend(longest)
            write(rows, "training_profile")
            write(kernels, "training_kernels")
            print("  ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    show(rows, title="training")
    show(
        [row for row in kernels if row["milliseconds"] > 0.02 * _step_of(row, rows)], title="kernels above 2% of a step"
    )


if __name__ == "__main__":
    main()
