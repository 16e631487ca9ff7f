"""What `benchmarks.ops.gather_dot` compares gives the same, and its rows hold what they say."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.ops import gather_dot


@pytest.mark.parametrize("expansion", [1, 4])
def test_ours_and_the_composition_agree(expansion):
    size = gather_dot.Size(8, 16, 3, 5, expansion)
    given = gather_dot.operands(size, device="cpu")
    ours, theirs = gather_dot.gather_dot(*given, size), gather_dot.gather_and_einsum(*given, size)
    # The composition rounds every product's sum to bfloat16.
    torch.testing.assert_close(ours, theirs.float(), rtol=2**-7, atol=2**-7)


def test_a_row_has_floor_times_and_ratios():
    size = gather_dot.Size(2048, 192, 32, 64, 4)
    made = gather_dot.row(size, 1.0, {"ours": 2.0, "ours_rows": 3.0}, {"gather_einsum": 8.0})
    assert made.pop("size") == "1.05M x 192, 32 rows of 64 tokens"
    assert made == {
        "floor_us": 1.0,
        "ours_us": 2.0,
        "ours_rows_us": 3.0,
        "gather_einsum_us": 8.0,
        "share_of_floor": 0.5,
        "gather_einsum_ratio": 4.0,
    }
