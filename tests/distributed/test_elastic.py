"""torchrun's restart after a killed rank, and its stop after a SIGTERM."""

import subprocess

import pytest

from tests.distributed.launching import ENVIRONMENT, ROOT, is_as_unbroken, torchrun
from tests.train.tiny import write_data
from ultramem.train.checkpoint import Checkpoints

ON_THIS_MACHINE = ["--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("elastic") / "data")


def launch(options, fault, rank, data, out):
    command = torchrun(options, fault, rank, data, out)
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_after_a_killed_rank_torchrun_goes_on_from_the_last_checkpoint(data, tmp_path):
    out = tmp_path / "run"
    done = launch([*ON_THIS_MACHINE, "--max-restarts", "1"], "kill", 1, data, out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "exitcode: -9" in done.stderr or "Signal 9" in done.stderr
    assert is_as_unbroken(out, data, tmp_path, world_size=2)


@pytest.mark.slow
def test_a_sigterm_to_torchrun_saves_and_the_same_command_goes_on(data, tmp_path):
    out = tmp_path / "run"
    launch(ON_THIS_MACHINE, "preempt", 0, data, out)
    assert Checkpoints(out / "checkpoints").steps == [4, 7]
    done = launch(ON_THIS_MACHINE, "preempt", 0, data, out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert is_as_unbroken(out, data, tmp_path, world_size=2)
