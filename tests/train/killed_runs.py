"""Kills training at seeded moments, goes on, and compares; run by test_kill.py in a process of its own.

A moment is a count of file-system events inside the run's folder: opening, renaming, removing. Between two of them no
name in the folder changes, so the moments cover what a kill can do to it, and none depends on the clock.

Usage: python killed_runs.py DATA FOLDER NUMBER_OF_KILLS
"""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

from tests.train.tiny import losses, tiny_config
from ultramem.train.trainer import train

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def train_in_child(data, out, kill_at=None):
    """Fork, train, count the events; end by SIGKILL at the one with number `kill_at`. Return events and exit status."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event, arguments):
            nonlocal count
            if event in EVENTS and str(arguments[0]).startswith(str(out)):
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(hook)
        status = 1
        try:
            train(tiny_config(steps=12, checkpoint_every_steps=4, evaluate_every_steps=6), data, out)
            os.write(writer, str(count).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        return int(stream.read() or 0), status


def main():
    data, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    events, status = train_in_child(data, folder / "unbroken")
    assert status == 0
    expected = losses(folder / "unbroken")
    for moment in sorted(random.Random(0).sample(range(events), kills)):
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        _, status = train_in_child(data, out, kill_at=moment)
        assert os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
        kept = sorted(entry.name for entry in out.glob("checkpoints/step-????????"))
        _, status = train_in_child(data, out)
        assert status == 0, f"after a kill at event {moment}, with {kept}, the run does not go on"
        assert losses(out) == expected, f"after a kill at event {moment}, with {kept}, the losses differ"
        strays = [str(entry) for entry in out.rglob("*.tmp")]
        assert strays == [], strays
        print(f"event {moment} of {events}: {kept}")


if __name__ == "__main__":
    main()
