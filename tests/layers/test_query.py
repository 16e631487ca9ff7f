"""The causal convolution of the queries against PyTorch's own, and against float64 in low precision."""

import pytest
import torch
from torch.nn import functional as F

from ultramem.layers.query import CausalConv, ConvState, Query


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


@torch.no_grad()
def test_a_state_is_advanced_by_who_reads_it():
    torch.manual_seed(0)
    conv = CausalConv(5, 4)
    hidden, state = torch.randn(2, 9, 5), ConvState(torch.zeros(2, 3, 5))
    parts = [conv(part, state) for part in hidden.split([2, 1, 5, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), conv(hidden))
    assert torch.equal(state.inputs, hidden[:, -3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_loses_little(dtype):
    """Sums are in float32: one rounding of the result, and float32's of the sum of magnitudes."""
    torch.manual_seed(0)
    conv = CausalConv(64, 4).to(dtype)
    hidden = torch.randn(2, 50, 64, dtype=dtype)
    exact = plain(hidden.double(), conv.weight.double())
    magnitude = plain(hidden.double().abs(), conv.weight.double().abs())
    assert conv(hidden).dtype == dtype
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 8 * torch.finfo(torch.float32).eps * magnitude
    assert ((conv(hidden).double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_autocast_leaves_a_normalised_query_in_its_own_precision(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    sizes = {"num_sets": 1, "num_ranks": 2, "rank_width": 8, "conv_size": 4}
    query = Query(16, norm=True, **sizes).to(device)
    hidden = torch.randn(2, 3, 16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert query(hidden).dtype == torch.bfloat16
    assert query(hidden).dtype == torch.float32
