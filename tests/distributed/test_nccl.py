"""Two processes on two GPUs over NCCL train as one process on one GPU does, with the kernels, in every way to divide.

The order in which float32 numbers are summed moves a run: how far, one process shows that takes its micro-batches of
other sizes. Two processes may move it twice as far.
"""

import multiprocessing
import shutil
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations, product
from unittest.mock import patch

import pytest
import torch

from tests.distributed import ranks
from tests.distributed.test_training import LAYOUTS, config_of
from tests.train.tiny import losses, write_data
from ultramem.distributed.process_group import process_group
from ultramem.train.checkpoint import Checkpoints
from ultramem.train.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2, reason=f"needs two GPUs, and {torch.cuda.device_count()} can be seen"
    ),
]

STEPS = 6
CONFIG = config_of(
    "ultramem", steps=STEPS, evaluate_every_steps=3, checkpoint_every_steps=3, collective_timeout_seconds=40
)
METRICS = ("loss", "cross_entropy", "auxiliary_loss", "gradient_norm", "validation_loss")
ROWS, REPLICAS = "ultramem.distributed.rows.pools_at_owners", "ultramem.distributed.replica_gradients.rows_are_cheaper"
WAYS = {
    "columns": ("columns", None),
    "rows pooled at their owners": ("rows", (ROWS, True)),
    "rows fetched": ("rows", (ROWS, False)),
    "replicas that exchange touched rows": ("replicate", (REPLICAS, True)),
    "replicas that exchange all rows": ("replicate", (REPLICAS, False)),
}
TIMES = ("first", "second")


def train_in_all_ways(data, folder):
    """Every run twice; the second one writes its checkpoints in the background."""
    with process_group(torch.device("cuda"), timeout_seconds=40) as device:
        for (way, (layout, rule)), time in product(WAYS.items(), TIMES):
            with patch(rule[0], lambda *_, answer=rule[1], **__: answer) if rule else nullcontext():
                config = replace(CONFIG, parallel=LAYOUTS[layout], checkpoint_in_background=time == "second")
                train(config, data, folder / f"{way}, {time}", device=device)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one process with micro-batches of several sizes, then all runs of two."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_data(folder / "data")
    for size in (8, 4, 2):
        train(replace(CONFIG, micro_batch_size=size), data, folder / f"alone, {size}", device="cuda")
    # Not forked from a server: what counts GPUs as it is imported would keep its children from using them.
    with patch.object(ranks, "_processes", multiprocessing.get_context("spawn")):
        ranks.run_ranks(train_in_all_ways, 2, data, folder, join=False)
    return folder


def metrics(run):
    """By step and name."""
    return {(line["step"], name): line[name] for line in losses(run) for name in METRICS if name in line}


def distances(one, other):
    """By name: the largest difference at any step, as a share."""
    assert one.keys() == other.keys()
    shares = {name: 0.0 for name in METRICS}
    for (step, name), value in one.items():
        shares[name] = max(shares[name], abs(other[step, name] - value) / max(abs(value), 1e-9))
    return shares


def tolerances(runs):
    """By name: twice as far as the order of sums moves one process, or than rounding a sum over a step's tokens may."""
    rounding = torch.finfo(torch.float32).eps * CONFIG.tokens_per_step**0.5
    alone = [metrics(runs / f"alone, {size}") for size in (8, 4, 2)]
    moved = [distances(one, other) for one, other in combinations(alone, 2)]
    return {name: 2 * max(rounding, *(each[name] for each in moved)) for name in METRICS}


def check_same(one, other, limits, what):
    shares = distances(one, other)
    assert {name: share for name, share in shares.items() if share > limits[name]} == {}, (what, limits)


@pytest.mark.parametrize("way", WAYS)
def test_two_gpus_train_as_one(way, runs):
    check_same(metrics(runs / "alone, 2"), metrics(runs / f"{way}, first"), tolerances(runs), way)


@pytest.mark.parametrize("way", WAYS)
def test_a_second_run_is_the_same_to_the_bit(way, runs):
    """Checkpoints too, those that were written in the background."""
    first, second = (runs / f"{way}, {time}" for time in TIMES)
    assert losses(first) == losses(second)
    expected, written = (Checkpoints(run / "checkpoints").path(STEPS) for run in (first, second))
    files = sorted(expected.glob("*.distcp"))
    assert len(files) == 2
    assert all(file.read_bytes() == (written / file.name).read_bytes() for file in files)


@pytest.mark.parametrize("way", WAYS)
def test_one_gpu_goes_on_from_what_two_have_saved(way, runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / f"{way}, second", run)
    (run / "summary.json").unlink()
    shutil.rmtree(Checkpoints(run / "checkpoints").path(STEPS))
    train(replace(CONFIG, parallel=LAYOUTS[WAYS[way][0]]), runs / "data", run, device="cuda")
    check_same(metrics(runs / f"{way}, first"), metrics(run), tolerances(runs), way)
