import os
import runpy
import subprocess
from pathlib import Path

from torch.distributed.run import get_args_parser

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_plain_loop_learns_to_count(capsys):
    runpy.run_path(str(EXAMPLES / "plain_loop.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == str(list(range(13)))


def test_slurm_starts_torchrun_on_every_host(tmp_path):
    for command, body in {"scontrol": 'printf "%s\\n" host1 host2', "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / command).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / command).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "host[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    run = {"RECIPE": "ultramem-1.6b-x12", "DATA": "data/x", "OUT": "runs/a"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **job, **run}
    done = subprocess.run(["bash", EXAMPLES / "slurm.sh"], env=environment, capture_output=True, text=True)
    launcher, *arguments = done.stdout.splitlines()
    options = get_args_parser().parse_args(arguments)
    assert (launcher, options.nnodes, options.rdzv_endpoint, options.rdzv_id) == ("torchrun", "2", "host1:29500", "7")
    assert [options.training_script, *options.training_script_args] == [
        "ultramem", "train", "ultramem-1.6b-x12", "--data", "data/x", "--out", "runs/a",
    ]  # fmt: skip
