"""Every kernel passes Triton's compiler: its interpreter, which runs the other tests, takes what a GPU would not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ultramem.ops

pytest.importorskip("triton")


def test_every_kernel_compiles_for_a_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.compile_kernels"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sources = [path.read_text() for path in Path(ultramem.ops.__file__).parent.rglob("*kernels.py")]
    kernels = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, flags=re.MULTILINE)}
    assert set(done.stdout.split()) == kernels
