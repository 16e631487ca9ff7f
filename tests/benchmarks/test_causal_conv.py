"""What `benchmarks.ops.causal_conv` compares gives the same."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.ops import causal_conv
from ultramem import ops


@pytest.mark.parametrize("peer", [causal_conv.shifted_products, causal_conv.depthwise])
def test_ours_and_the_peers_agree(peer):
    given = [tensor.double() for tensor in causal_conv.operands(causal_conv.Size(2, 9, 5), device="cpu")]
    torch.testing.assert_close(ops.causal_conv(*given), peer(*given))


def test_a_row_has_floor_times_and_ratios():
    made = causal_conv.row(causal_conv.Size(1, 2, 3), 1.0, 2.0, {"compiled": 8.0, "depthwise": None})
    assert made == {
        "size": "1 x 2 tokens of 3, 4 taps",
        "floor_us": 1.0,
        "ours_us": 2.0,
        "compiled_us": 8.0,
        "depthwise_us": None,
        "share_of_floor": 0.5,
        "compiled_ratio": 4.0,
        "depthwise_ratio": None,
    }


def test_a_peer_that_fails_is_left_out(capsys):
    def measure(function):
        if function is causal_conv.depthwise:
            raise RuntimeError("not captured")
        return 1.0

    peers = {"depthwise": causal_conv.depthwise, "shifted_products": causal_conv.shifted_products}
    assert causal_conv.all_times(measure, peers, "forward") == (1.0, {"depthwise": None, "shifted_products": 1.0})
    assert "not captured" in capsys.readouterr().err
