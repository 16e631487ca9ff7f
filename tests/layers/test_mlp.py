import torch
from torch.nn import functional as F

from ultramem.layers.mlp import GELUMLP, SwiGLU


def test_swiglu_is_its_formula():
    torch.manual_seed(0)
    mlp, hidden = SwiGLU(6, 10), torch.randn(2, 3, 6)
    gate, up, down = (p.weight for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    expected = (F.silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T
    torch.testing.assert_close(mlp(hidden), expected)


def test_gelu_is_its_formula():
    torch.manual_seed(0)
    mlp, hidden = GELUMLP(6, 10), torch.randn(2, 3, 6)
    expected = F.gelu(hidden @ mlp.up_proj.weight.T) @ mlp.down_proj.weight.T
    torch.testing.assert_close(mlp(hidden), expected)


def test_neither_has_biases():
    assert {name for name, _ in SwiGLU(4, 8).named_parameters()} == {
        "gate_proj.weight",
        "up_proj.weight",
        "down_proj.weight",
    }
    assert {name for name, _ in GELUMLP(4, 8).named_parameters()} == {"up_proj.weight", "down_proj.weight"}
