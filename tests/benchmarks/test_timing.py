"""What `benchmarks.ops.timing` measures is what it says."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.ops import timing


def test_a_backward_pass_is_that_alone():
    calls = []

    def square(leaf):
        calls.append(leaf)
        return leaf.square()

    leaf = torch.tensor([2.0, 3.0], requires_grad=True)
    backward = timing.backward_pass(square, [leaf], torch.tensor([1, 10]))
    assert not calls
    for _ in range(2):
        assert backward()[0].tolist() == [4.0, 60.0]
    assert len(calls) == 1
