import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def kill(data, folder, kills, world_size, saving):
    """What `killed_runs` tells of each kill."""
    arguments = map(str, (data, folder, kills, world_size, saving))
    result = subprocess.run(
        [sys.executable, "-m", "tests.train.killed_runs", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("killed at")]
    assert len(lines) == kills
    return lines


@pytest.mark.parametrize("saving", ["foreground", "background"])
def test_a_kill_at_any_moment_leaves_a_run_that_goes_on_bit_for_bit(data, tmp_path, saving):
    lines = kill(data, tmp_path, 6, 1, saving)
    # Some moments fall before the first checkpoint, some after.
    assert any(line.endswith("kept step 0") for line in lines)
    assert not all(line.endswith("kept step 0") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("saving", "kills"), [("foreground", 25), ("background", 12)])
def test_a_kill_of_any_rank_at_any_moment_leaves_a_run_that_goes_on_bit_for_bit(data, tmp_path, saving, kills):
    lines = kill(data, tmp_path, kills, 2, saving)
    for words in (
        "rank=0, kind='saving'",
        "rank=1, kind='saving'",
        "rank=0, kind='training'",
        "rank=1, kind='training'",
    ):
        assert any(words in line for line in lines), words
