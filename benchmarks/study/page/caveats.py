"""When not to use memory layers: sentences made of kept numbers, each with a link to its row."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.study.ladder import PAPER
from benchmarks.study.page.equal_compute import loss_in_time_of, training_seconds
from benchmarks.study.page.kept_runs import Kept
from benchmarks.study.page.knowledge import mean_stored, rival_of
from benchmarks.study.page.speed import fastest_steps
from benchmarks.study.page.tables import (
    Row,
    anchor,
    best_by_name,
    by_name,
    by_scale,
    by_settings,
    change,
    compared,
    difference,
    mean_of,
    short_name,
)


def training_time(kept: Kept) -> str | None:
    """What a memory costs in training."""
    for line in kept.lines("training"):
        ratio, fair = float(line["of_dense"]), float(line["flops_ratio"])
        if line["model"].startswith("ultramem") and ratio < 1:
            return (
                f"**Where time counts and not tokens.** {line['model']} trains at [{ratio:.2f} of the dense model's "
                f"tokens/s](#training-{line['model']}); its operations alone would give {fair:.2f}."
            )
    return None


def laptop(kept: Kept) -> str | None:
    """The same on a CPU."""
    speed = {line["recipe"]: float(line["tokens_per_second"]) for line in kept.lines("demo")}
    if not {"cpu-dense", "cpu-ultramem"} <= set(speed) or speed["cpu-ultramem"] >= speed["cpu-dense"]:
        return None
    ratio = speed["cpu-ultramem"] / speed["cpu-dense"]
    return (
        f"**On a CPU, where time counts.** The demo's UltraMem learns from [{ratio:.2f} of the "
        "tokens](../README.md#results) that the dense model learns from in the same time."
    )


def memory(kept: Kept) -> str | None:
    """What a table takes on a GPU."""
    peaks = {line["model"]: float(line["peak_gb"]) for line in kept.lines("training")}
    sparse = [name for name in peaks if name.startswith("ultramem")]
    dense = [name for name in peaks if name.startswith("dense")]
    if not sparse or not dense:
        return None
    return (
        f"**Where memory is short.** In training {sparse[0]} takes [{peaks[sparse[0]]:.1f} GB](#training-{sparse[0]}) "
        f"where its dense trunk takes [{peaks[dense[0]]:.1f}](#training-{dense[0]})."
    )


def facts(kept: Kept) -> str | None:
    """Which models store more facts."""
    best = best_by_name(by_settings(kept.runs("knowledge")))
    ahead = []
    for runs in sorted(best.values(), key=lambda runs: runs[0]["afterwards"]["persons"]):
        persons = runs[0]["afterwards"]["persons"]
        ultramem = best.get(f"ultramem-{persons}-people")
        if ultramem and mean_stored(runs) > mean_stored(ultramem):
            link = f"[{mean_stored(runs) / mean_stored(ultramem):.2f}](#{anchor('knowledge', runs[0])})"
            ahead.append(f"{rival_of(runs[0])} {link} of {persons:,}")
    if not ahead:
        return None
    return (
        f"**Where facts are to be stored.** Times the bits that UltraMem stores of people's facts: {', '.join(ahead)}."
    )


def decoding(kept: Kept) -> str | None:
    """What a memory costs in decoding, and where its lead over experts shrinks."""
    steps = fastest_steps(kept.lines("decode"), "ultramem")
    if not steps:
        return None
    largest = steps[max(steps)]
    best = max(steps.values(), key=lambda line: float(line["moe_is_slower"]))
    return (
        f"**To decode faster than a dense model of the same trunk.** A step takes [{float(largest['of_dense']):.2f} of "
        f"the dense model's](#decode-{largest['batch']}) at batch {largest['batch']}; what a memory saves is an expert "
        f"layer's time, [{float(best['moe_is_slower']):.1f} times](#decode-{best['batch']}) as long at batch "
        f"{best['batch']} and [{float(largest['moe_is_slower']):.1f} times](#decode-{largest['batch']}) at "
        f"{largest['batch']}."
    )


def tuning(kept: Kept) -> str | None:
    """What the initialisation and the worst step of the ladder do, beside all steps together."""
    runs = {short_name(same[0]): mean_of(same, "validation_loss") for same in by_name(kept.runs("ladder")).values()}
    if not set(PAPER) <= set(runs):
        return None
    scale = kept.runs("ladder")[0]["scale"]
    steps = {name: runs[name] - runs[below] for below, name in pairwise(PAPER)}
    worst = max(steps, key=steps.__getitem__)
    return (
        f"**Where nothing can be tuned.** All steps of the ladder change the loss by {sum(steps.values()):+.3f}; the "
        f"initialisation alone, [10-init](#ladder-{scale}-10-init), by {steps['10-init']:+.3f}, and the worst step, "
        f"[{worst}](#ladder-{scale}-{worst}), by {steps[worst]:+.3f}."
    )


def experts(kept: Kept) -> str | None:
    """Who is ahead of UltraMem at equal compute and tokens."""
    ahead = []
    for ultramem, groups in _beside(kept, "ultramem"):
        told = compared([run for runs in groups for run in runs])[-1]
        for runs in groups:
            behind, error = change(ultramem, runs, told)
            if behind > 2 * (error or 0.0):
                ahead.append(f"{_link(runs)} by {difference(ultramem, runs, told).removeprefix('+')}")
    if not ahead:
        return None
    return (
        "**Where others lead.** Ahead of UltraMem at equal compute and tokens, by the loss of new tokens where every "
        "model has it, and by more than twice the standard error where both have several seeds: "
        f"{', '.join(ahead)}."
    )


def equal_time(kept: Kept) -> str | None:
    """Who is behind the dense model when it has ended."""
    behind = []
    for dense, groups in _beside(kept, "dense"):
        end = training_seconds(dense)
        for runs in groups:
            loss = loss_in_time_of(dense, runs)
            # What is faster has ended, too: it is compared at equal compute.
            if loss is not None and training_seconds(runs) > end and loss > mean_of(dense, "validation_loss"):
                behind.append(f"{_link(runs)} by {loss - mean_of(dense, 'validation_loss'):.3f}")
    if not behind:
        return None
    return (
        f"**For the best model after a given time.** When the dense model has ended, these are behind it, though their "
        f"learning rates have not yet come down: {', '.join(behind)}."
    )


def _beside(kept: Kept, name: str) -> Iterator[tuple[list[Row], list[list[Row]]]]:
    """At each scale one model's runs at equal compute, and all models'."""
    for of_scale in by_scale(kept.runs("equal_compute")):
        groups = [*best_by_name(by_settings(of_scale)).values()]
        for runs in groups:
            if short_name(runs[0]) == name:
                yield runs, groups


def _link(runs: list[Row]) -> str:
    return f"[{short_name(runs[0])}](#{anchor('equal_compute', runs[0])}) at {runs[0]['scale']}"


CAVEATS = (training_time, equal_time, experts, facts, laptop, memory, decoding, tuning)


def caveats(folder: Path) -> str:
    """All that the kept numbers say against a memory layer."""
    said = [caveat(Kept(folder)) for caveat in CAVEATS]
    return "".join(f"- {sentence}\n" for sentence in said if sentence)
