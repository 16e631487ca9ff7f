"""torchrun on a tiny run, and the run that nothing broke to compare with."""

import json
import os
import sys
from pathlib import Path

from tests.distributed.ranks import run_ranks
from tests.train.tiny import losses, tiny_config
from ultramem.train.checkpoint import Checkpoints
from ultramem.train.config_json import config_to_dict
from ultramem.train.trainer import train

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
CONFIG = tiny_config(name="cpu-ultramem", steps=12, checkpoint_every_steps=4, evaluate_every_steps=6)


def torchrun(options, fault, rank, data, out):
    """The command; the fault's marker and the configuration lie beside the run."""
    config = out.with_suffix(".json")
    config.write_text(json.dumps(config_to_dict(CONFIG)))
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "tests.distributed.launched"]
    arguments = ["cpu-ultramem", "--config", config, "--data", data, "--out", out]
    return [*launcher, fault, str(rank), str(out.with_suffix(".marker")), *map(str, arguments)]


def train_unbroken(data, out):
    train(CONFIG, data, out)


def is_as_unbroken(out, data, folder, world_size):
    """Whether losses, weights and moments are, to the bit, those of as many ranks that nothing happened to."""
    unbroken = folder / "unbroken"
    run_ranks(train_unbroken, world_size, data, unbroken, join=False)
    ours, expected = (Checkpoints(run / "checkpoints").path(CONFIG.steps) for run in (out, unbroken))
    files = sorted(expected.glob("*.distcp"))
    assert len(files) == world_size
    return losses(out) == losses(unbroken) and all(
        file.read_bytes() == (ours / file.name).read_bytes() for file in files
    )
