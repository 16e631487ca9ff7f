"""Several recipes on the same tokens in the same order, and what is fair to say about them.

Every run keeps its own folder under the comparison's, so an interrupted comparison goes on where it stopped, and a
finished one is only read again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch

from ultramem.accounting import count_active_parameters, count_flops, count_parameters
from ultramem.train.config import TrainConfig
from ultramem.train.config_json import config_to_dict, load_config
from ultramem.train.journal import read_journal
from ultramem.train.run_folder import read_starts
from ultramem.train.summary import read_summary
from ultramem.train.trainer import train

FLOPS_TOLERANCE = 0.05
SAME_IN_ALL = ("steps", "batch_size", "sequence_length")


@dataclass(frozen=True)
class Measurement:
    """A loss in nats a token, after so many tokens and seconds of training."""

    tokens: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Run:
    """One recipe trained with one seed. `peak_memory_bytes` is the process's: runs before this one may have had it."""

    seed: int
    folder: str
    training: list[Measurement]
    validation: list[Measurement]
    bits_per_byte: float
    seconds_per_step: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, their standard deviation (zero for one seed) and the values themselves."""

    mean: float
    deviation: float
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Summarise one value a seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0, list(values))


@dataclass(frozen=True)
class RecipeResult:
    """One recipe over all seeds. Parameters exclude embeddings; `flops_per_token` is a forward pass's."""

    name: str
    parameters: int
    active_parameters: int
    flops_per_token: int
    seconds_per_step: Mean
    tokens_per_second: Mean
    validation_loss: Mean
    bits_per_byte: Mean
    runs: list[Run]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """All recipes, and whether their compute is near enough for their losses to be compared."""

    comparable: bool
    warnings: list[str]
    steps: int
    tokens: int
    seeds: list[int]
    recipes: list[RecipeResult]
    environments: list[dict[str, Any]]
    """Versions and machine at each start of the first run."""


def compare(
    configs: Sequence[TrainConfig],
    *,
    data: Path,
    out: Path,
    seeds: Sequence[int] = (0,),
    device: torch.device | str | None = None,
) -> Comparison:
    """Train every recipe with every seed on the same tokens in the same order, and gather the results.

    Args:
        configs: the recipes; they must agree on steps, batch and sequence length.
        data: folder made by `ultramem prepare`.
        out: each run gets the folder `out/<name>-seed<seed>`; a finished one is read, an interrupted one goes on.
        seeds: of weights and of the order of the data.
        device: where to compute; none takes a GPU where there is one.

    Raises:
        ValueError: a recipe or a seed is given twice, or the recipes would not see the same tokens.
        KeyboardInterrupt: a run was asked to stop; it has a checkpoint, and the same call goes on.

    Example:
        >>> comparison = compare([recipes.get("cpu-dense"), recipes.get("cpu-ultramem")], data=data, out=Path("runs"))
        >>> comparison.recipes[1].validation_loss.mean
        4.81
    """
    if not configs:
        raise ValueError("no recipes: name those to compare, such as cpu-dense cpu-ultramem")
    _require_same_tokens(configs)
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"seeds are {list(seeds)}: give one or more, each once")
    runs: dict[str, list[Run]] = {config.name: [] for config in configs}
    for seed in seeds:
        for config in configs:
            folder = out / f"{config.name}-seed{seed}"
            summary = train(replace(config, seed=seed), data, folder, device=device)
            if summary["status"] != "finished":
                raise KeyboardInterrupt
            runs[config.name].append(read_run(folder))
    return summarise(configs, runs)


def summarise(configs: Sequence[TrainConfig], runs: Mapping[str, list[Run]]) -> Comparison:
    """Put runs of the same tokens side by side, and say where their compute differs too much."""
    results = [_summarise_recipe(config, runs[config.name]) for config in configs]
    warnings = compute_warnings(configs)
    return Comparison(
        comparable=not warnings,
        warnings=warnings,
        steps=configs[0].steps,
        tokens=configs[0].steps * configs[0].tokens_per_step,
        seeds=[run.seed for run in results[0].runs],
        recipes=results,
        environments=read_starts(Path(results[0].runs[0].folder) / "environment.json"),
    )


def compute_warnings(configs: Sequence[TrainConfig]) -> list[str]:
    """Return a sentence for each recipe whose FLOPs a token are more than 5 percent above the cheapest one's.

    Example:
        >>> compute_warnings([recipes.get("cpu-dense"), recipes.get("cpu-ultramem")])
        []
    """
    flops = {config.name: _flops_per_token(config) for config in configs}
    cheapest = min(flops, key=lambda name: flops[name])
    reference = flops[cheapest]
    return [
        f"not comparable: {name} spends {count / reference - 1:.1%} more FLOPs a token than {cheapest}, "
        "so their losses are not those of equal compute"
        for name, count in flops.items()
        if count - reference > FLOPS_TOLERANCE * reference
    ]


def read_run(folder: Path) -> Run:
    """Read what a finished run measured, from its folder.

    Raises:
        ValueError: a file of the run is damaged.
    """
    config = load_config(folder / "run.json")
    metrics = folder / "metrics.jsonl"
    journal = read_journal(metrics)
    for name in ("tokens_per_second", "bits_per_byte"):
        if not any(name in line for line in journal):
            raise ValueError(f"{metrics} is damaged (no line has {name}): remove {folder} to train it again")

    def curve(loss: str) -> list[Measurement]:
        return [
            Measurement(line["step"] * config.tokens_per_step, line["seconds"], line[loss])
            for line in journal
            if loss in line
        ]

    tokens_per_second = median(line["tokens_per_second"] for line in journal if "tokens_per_second" in line)
    return Run(
        seed=config.seed,
        folder=str(folder),
        training=curve("cross_entropy"),
        validation=curve("validation_loss"),
        bits_per_byte=[line["bits_per_byte"] for line in journal if "bits_per_byte" in line][-1],
        seconds_per_step=config.tokens_per_step / tokens_per_second,
        tokens_per_second=tokens_per_second,
        peak_memory_bytes=read_summary(folder / "summary.json")["peak_memory_bytes"],
    )


def _require_same_tokens(configs: Sequence[TrainConfig]) -> None:
    if not configs:
        raise ValueError("no recipe is given: name two or more")
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise ValueError(f"recipes are {', '.join(names)}: give each once")
    for field in SAME_IN_ALL:
        values = {config.name: getattr(config, field) for config in configs}
        if len(set(values.values())) > 1:
            differing = ", ".join(f"{name} has {value}" for name, value in values.items())
            flag = "--" + field.replace("_", "-")
            raise ValueError(f"{field} differs ({differing}): give {flag} so that all see the same tokens")


def _flops_per_token(config: TrainConfig) -> int:
    return count_flops(config.model, config.sequence_length).per_token


def _summarise_recipe(config: TrainConfig, runs: list[Run]) -> RecipeResult:
    return RecipeResult(
        name=config.name,
        parameters=count_parameters(config.model).without_embeddings,
        active_parameters=count_active_parameters(config.model).without_embeddings,
        flops_per_token=_flops_per_token(config),
        seconds_per_step=Mean.of([run.seconds_per_step for run in runs]),
        tokens_per_second=Mean.of([run.tokens_per_second for run in runs]),
        validation_loss=Mean.of([run.validation[-1].loss for run in runs]),
        bits_per_byte=Mean.of([run.bits_per_byte for run in runs]),
        runs=runs,
        settings=config_to_dict(config),
    )
