"""A rank that torchrun starts: `ultramem train`, where one fault happens once.

Usage: torchrun … -m tests.distributed.launched FAULT RANK MARKER [arguments of `ultramem train`]
"""

import os
import signal
import sys
import time
from pathlib import Path

from ultramem.cli import main
from ultramem.train.trainer import Trainer


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def preempt():
    """Ask torchrun to stop, and wait until it has asked this rank."""
    handler = signal.getsignal(signal.SIGTERM)
    os.kill(os.getppid(), signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) == handler:
        time.sleep(0.01)


FAULTS = {"kill": kill, "preempt": preempt}


def launched():
    fault, rank, marker, *arguments = sys.argv[1:]
    take_step = Trainer.take_step

    def patched(trainer):
        if trainer.step == 6 and trainer.rank == int(rank) and not Path(marker).exists():
            Path(marker).touch()
            FAULTS[fault]()
        return take_step(trainer)

    Trainer.take_step = patched
    return main(["train", *arguments])


if __name__ == "__main__":
    sys.exit(launched())
