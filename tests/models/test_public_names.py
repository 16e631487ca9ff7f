"""`import ultramem` is light; names load when they are touched; layers need no transformers."""

import subprocess
import sys

import pytest

import ultramem


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_neither_torch_nor_transformers():
    run("import sys, ultramem; assert not {'torch', 'transformers'} & sys.modules.keys()")


def test_operations_and_layers_work_where_transformers_is_not_installed():
    run(
        "import sys; sys.modules['transformers'] = None\n"
        "import torch, ultramem, ultramem.ops, ultramem.layers\n"
        "layer = ultramem.UltraMemLayer(8, num_keys=4, key_size=4, value_size=4, top_k=2)\n"
        "table = ultramem.layers.Table(16, 4, std=1.0)\n"
        "assert layer(torch.randn(1, 3, 8), table).hidden_states.shape == (1, 3, 8)\n"
        "assert ultramem.MoE(8, 8, num_experts=2, num_experts_per_tok=1)(torch.randn(3, 8))\n"
        "try: ultramem.UltraMemConfig\n"
        "except ImportError: pass\n"
        "else: raise AssertionError\n"
    )


def test_every_public_name_is_there():
    assert set(ultramem.__all__) <= set(dir(ultramem))
    for name in ultramem.__all__:
        assert getattr(ultramem, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'UltraMemLayr'"):
        ultramem.UltraMemLayr  # noqa: B018
