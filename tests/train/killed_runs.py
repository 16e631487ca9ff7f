"""Kills training at seeded moments, goes on, and compares; run by test_kill.py in a process of its own.

A moment is a count of events on one rank: while saving, file-system events inside the run's folder (opening, renaming,
removing: between two of them no name in the folder changes); while training, a module's forward and an optimizer's
step. So the moments cover what a kill can do, and none depends on the clock. As torchrun does, a kill of one rank ends
the others and starts all of them again.

Usage: python killed_runs.py DATA FOLDER NUMBER_OF_KILLS WORLD_SIZE foreground|background
"""

import mmap
import os
import random
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.distributed.ranks import environment_of, meeting_place
from tests.train.tiny import losses, tiny_config
from ultramem.train.checkpoint import Checkpoints
from ultramem.train.trainer import Trainer, train

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
KINDS = ("saving", "training")
STEPS, INTERVAL = 12, 4


class Moment(NamedTuple):
    rank: int
    kind: str
    count: int


class Counts:
    """How many events of each kind every rank has seen, and its steps; outlives the rank."""

    def __init__(self, world_size):
        self._memory = memoryview(mmap.mmap(-1, 8 * 3 * world_size)).cast("q")

    def __getitem__(self, place):
        return self._memory[self._index(*place)]

    def __setitem__(self, place, value):
        self._memory[self._index(*place)] = value

    @staticmethod
    def _index(rank, kind):
        return 3 * rank + (*KINDS, "steps").index(kind)


def watch(rank, out, counts, moment):
    """Count this rank's events; end by SIGKILL at the moment."""
    one_by_one = threading.Lock()  # a save in the background has a thread of its own

    def count(kind):
        with one_by_one:
            if moment == (rank, kind, counts[rank, kind]):
                os.kill(os.getpid(), signal.SIGKILL)
            counts[rank, kind] += 1

    def audit(event, arguments):
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(out)):
            count("saving")

    take_step = Trainer.take_step

    def counted_step(trainer):
        result = take_step(trainer)
        counts[rank, "steps"] = trainer.step
        return result

    Trainer.take_step = counted_step
    sys.addaudithook(audit)
    register_module_forward_pre_hook(lambda *_: count("training"))
    register_optimizer_step_post_hook(lambda *_: count("training"))


def train_in_children(data, out, world_size, background, moment=None):
    """Train in forked ranks; once one of them is killed, kill the others.

    Returns:
        The counts of events, and whether all ranks finished.
    """
    counts, store = Counts(world_size), meeting_place()
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if world_size > 1:
                    os.environ.update(environment_of(rank, world_size, store))
                watch(rank, out, counts, moment)
                config = tiny_config(
                    steps=STEPS,
                    checkpoint_every_steps=INTERVAL,
                    evaluate_every_steps=6,
                    checkpoint_in_background=background,
                )
                train(config, data, out)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    finished = True
    while children:
        child, status = os.wait()
        children.remove(child)
        if status != 0:
            finished = False
            for other in children:
                os.kill(other, signal.SIGKILL)
    return counts, finished


def last_checkpoint(out):
    """Weights and moments, to the bit."""
    return {file.name: file.read_bytes() for file in (out / "checkpoints" / f"step-{STEPS:08d}").glob("*.distcp")}


def check(data, unbroken, out, world_size, background, moment):
    shutil.rmtree(out, ignore_errors=True)
    counts, finished = train_in_children(data, out, world_size, background, moment)
    assert not finished, moment
    kept = Checkpoints(out / "checkpoints").newest_step or 0
    steps = max(counts[rank, "steps"] for rank in range(world_size))
    # Nothing is lost beyond the last interval. In the background the checkpoint that ended the one before may be under
    # way still, until the next is due.
    assert kept >= (steps - 1) // INTERVAL * INTERVAL - INTERVAL * background, (moment, kept, steps)
    _, finished = train_in_children(data, out, world_size, background)
    assert finished, f"after a kill at {moment}, with step {kept} kept, the run does not go on"
    assert losses(out) == losses(unbroken), f"after a kill at {moment}, with step {kept} kept, the losses differ"
    assert last_checkpoint(out) == last_checkpoint(unbroken), f"after a kill at {moment}, the weights differ"
    strays = [str(entry) for entry in out.rglob("*.tmp")]
    assert strays == [], strays
    print(f"killed at {moment} in step {steps}; kept step {kept}")


def main():
    data, folder, kills, world_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    background = {"foreground": False, "background": True}[sys.argv[5]]
    unbroken = folder / "unbroken"
    counts, finished = train_in_children(data, unbroken, world_size, background=False)
    assert finished
    random_numbers = random.Random(0)
    for number in range(kills):
        rank, kind = random_numbers.randrange(world_size), KINDS[number % 2]
        # One in each of as many equal parts of the run.
        part = (number + random_numbers.random()) / kills
        moment = Moment(rank, kind, int(part * counts[rank, kind]))
        check(data, unbroken, folder / "killed", world_size, background, moment)


if __name__ == "__main__":
    main()
