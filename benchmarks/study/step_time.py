"""A step's time for each model of a scale, one after another with the machine to themselves.

Runs side by side wait for each other: against wall-clock time the report draws what was measured here.

python -m benchmarks.study.step_time --data data/docs --scale gpu-15m
"""

import argparse
import gc
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import machine
from benchmarks.study import dense_equivalent, equal_compute, table_size
from benchmarks.study.results import KEPT, Results
from benchmarks.study.scales import SCALES, Scale
from ultramem.data.loader import TokenLoader
from ultramem.data.tokens import TokenDataset
from ultramem.recipes.registry import with_model
from ultramem.train.config import TrainConfig
from ultramem.train.config_json import config_to_dict
from ultramem.train.determinism import deterministic_algorithms
from ultramem.train.run_folder import RunFolder
from ultramem.train.trainer import Trainer

EXPERIMENT = "step_time"
UNTIMED_STEPS = 5  # the first compile
TIMED_STEPS = 20
SECONDS_A_MODEL = 15.0  # where the cache of earlier runs has its code


def rivals(scale: Scale) -> Iterator[TrainConfig]:
    """The models of `equal_compute`, their learning rates not tuned."""
    return (timed(scale, rival) for rival in equal_compute.RIVALS)


def sizes(scale: Scale) -> Iterator[TrainConfig]:
    """The others of `table_size` and `dense_equivalent`."""
    for factor in table_size.FACTORS:
        yield table_size.resized(timed(scale, "ultramem"), factor)
    for factor in dense_equivalent.FACTORS:
        yield dense_equivalent.grown(timed(scale, "dense"), factor)


def timed(scale: Scale, rival: str) -> TrainConfig:
    """A run of so many steps as are taken."""
    return scale.fit(scale.recipe(rival), (UNTIMED_STEPS + TIMED_STEPS) * scale.batch_size * scale.sequence_length)


def measure(config: TrainConfig, data: Path, scale_name: str) -> dict[str, Any]:
    """Take the steps of a run, and return a row: "seconds_per_step", the median, and what it is the time of."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, validation = TokenDataset.open(data, "train"), TokenDataset.open(data, "validation")
    config = with_model(config, vocab_size=training.vocab_size)
    loader = TokenLoader(training, config.sequence_length, config.batch_size, config.seed)
    seconds = []
    torch.compiler.reset()
    gc.collect()  # the model before
    with TemporaryDirectory() as scratch, deterministic_algorithms():
        trainer = Trainer(config, RunFolder(Path(scratch)), loader, validation, device)
        for _ in range(config.steps):
            begun = time.perf_counter()
            trainer.take_step()  # waits for its loss, not for the optimizers: as in a run
            seconds.append(time.perf_counter() - begun)
    return {
        "name": config.name,
        "scale": scale_name,
        "seconds_per_step": median(seconds[UNTIMED_STEPS:]),
        "settings": config_to_dict(config),
        **machine(),
    }


def measure_all(scale_name: str, configs: Iterable[TrainConfig], data: Path, results: Results) -> None:
    """Time those models that are not among the results, and keep each at once; say which failed."""
    for config in results.missing(configs):
        try:
            row = measure(config, data, scale_name)
        except Exception:
            print(f"{EXPERIMENT} {config.name} failed: {traceback.format_exc()}", flush=True)
            continue
        results.add(row)
        print(f"{EXPERIMENT} {config.name}: {row['seconds_per_step'] * 1e3:.1f} ms", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Time what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by `ultramem prepare`")
    parser.add_argument("--out", type=Path, default=KEPT, help="folder of the results; begins with what is kept")
    parser.add_argument("--scale", choices=SCALES, required=True, help="the family of recipes")
    given = parser.parse_args(arguments)
    scale = SCALES[given.scale]
    measure_all(given.scale, [*rivals(scale), *sizes(scale)], given.data, Results(EXPERIMENT, given.out))


if __name__ == "__main__":
    main()
