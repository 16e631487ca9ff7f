"""The causal convolution of the queries against PyTorch's own, and against float64 in low precision."""

import pytest
import torch
from torch.nn import functional as F

from ultramem.layers.query import CausalConv


def plain(hidden, weight):
    padded = F.pad(hidden.transpose(1, 2), (weight.shape[-1] - 1, 0))
    return F.conv1d(padded, weight, groups=hidden.shape[2]).transpose(1, 2)


@pytest.mark.parametrize("length", [1, 2, 3, 11])
@pytest.mark.parametrize("taps", [1, 2, 4])
def test_output_and_every_gradient_are_those_of_a_padded_depthwise_convolution(length, taps):
    torch.manual_seed(0)
    conv = CausalConv(5, taps).double()
    hidden = torch.randn(3, length, 5, dtype=torch.float64, requires_grad=True)
    out, expected = conv(hidden), plain(hidden, conv.weight)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad(out, (hidden, conv.weight), direction)
    theirs = torch.autograd.grad(expected, (hidden, conv.weight), direction)
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_context_stands_before_the_tokens(seen):
    torch.manual_seed(0)
    conv = CausalConv(5, 4).double()
    hidden = torch.randn(2, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(hidden[:, seen:], hidden[:, :seen]), conv(hidden)[:, seen:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_loses_little(dtype):
    """A rounding a tap: at most as many units in the last place of the sum of magnitudes."""
    torch.manual_seed(0)
    conv = CausalConv(64, 4).to(dtype)
    hidden = torch.randn(2, 50, 64, dtype=dtype)
    exact = plain(hidden.double(), conv.weight.double())
    magnitude = plain(hidden.double().abs(), conv.weight.double().abs())
    assert conv(hidden).dtype == dtype
    assert ((conv(hidden).double() - exact).abs() <= 4 * torch.finfo(dtype).eps / 2 * magnitude).all()
