"""The variants that `benchmarks.ops.variants` times compute what is used, in Triton's interpreter."""

import os

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.ops import variants
from ultramem.ops import Placement
from ultramem.ops.lookup import backward_kernels


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles in this process")
def test_passes_over_the_columns_give_the_same_gradients():
    torch.manual_seed(0)
    placement = Placement(8, 4)
    table, slots = torch.randn(16, 24), torch.randint(64, (9, 17))
    slots[:, 3:] = 5  # a row whose reads cross tiles
    given = torch.randn(9, 4, 24), table, slots, torch.randn(9, 2, 17), placement
    variants.check(backward_kernels.lookup_backward(*given, 4), variants.in_passes(*given, 4))
