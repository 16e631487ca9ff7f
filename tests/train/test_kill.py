import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_kill_at_any_moment_leaves_a_run_that_goes_on_bit_for_bit(data, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tests.train.killed_runs", str(data), str(tmp_path), "8"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("event") == 8
    # Some moments fall before the first checkpoint, some after.
    assert "[]" in result.stdout
    assert "step-00000004" in result.stdout
