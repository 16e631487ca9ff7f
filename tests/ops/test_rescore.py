import pytest
import torch

from ultramem import ops
from ultramem.ops.rescore import _rescore


def naive(scores, indices, cores, num_keys, k):
    row, column = scores.unbind(dim=2)
    grids = torch.einsum("nhai,hcab,nhbj->nhcij", row, cores, column).flatten(3)
    order = grids.sum(dim=2).sort(dim=-1, descending=True, stable=True).indices[..., :k]
    slots = (indices[:, :, 0, :, None] * num_keys + indices[:, :, 1, None, :]).flatten(2).gather(2, order)
    return grids.gather(3, order[:, :, None].expand(-1, -1, cores.shape[1], -1)), slots


# tokens, heads, candidates, ranks, cores, k
SIZES = [(5, 2, 4, 2, 2, 6), (3, 1, 3, 1, 1, 9), (0, 2, 2, 2, 1, 1), (7, 3, 5, 4, 3, 11)]


def make(size, dtype=torch.float64):
    tokens, heads, candidates, ranks, num_cores, k = size
    torch.manual_seed(0)
    scores = torch.randn(tokens, heads, 2, ranks, candidates, dtype=dtype, requires_grad=True)
    indices = torch.rand(tokens, heads, 2, 50).argsort(dim=-1)[..., :candidates].contiguous()
    cores = torch.rand(heads, num_cores, ranks, ranks, dtype=dtype, requires_grad=True)
    return scores, indices, cores, 50, k


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_sorting_the_whole_grid_in_output_and_every_gradient(size):
    arguments = make(size)
    scores, _, cores, _, _ = arguments
    values, slots = ops.rescore(*arguments)
    expected, expected_slots = naive(*arguments)
    assert torch.equal(slots, expected_slots)
    torch.testing.assert_close(values, expected)
    direction = torch.randn_like(values)
    ours = torch.autograd.grad(values, (scores, cores), direction)
    theirs = torch.autograd.grad(expected, (scores, cores), direction, materialize_grads=True)
    torch.testing.assert_close(ours, theirs)


def test_ties_go_to_the_lower_grid_position():
    scores, indices, cores, num_keys, _ = make((2, 1, 4, 1, 1, 1))
    flat = torch.ones_like(scores)
    _, slots = ops.rescore(flat, indices, cores, num_keys, 6)
    expected = (indices[:, 0, 0, :, None] * num_keys + indices[:, 0, 1, None, :]).flatten(1)[:, :6]
    assert torch.equal(slots[:, 0], expected)


def test_custom_op_contract():
    torch.library.opcheck(_rescore, make(SIZES[0], torch.float32))


@pytest.mark.parametrize("k", [0, 17])
def test_more_slots_than_the_grid_has_are_refused(k):
    scores, indices, cores, num_keys, _ = make(SIZES[0])
    with pytest.raises(ValueError, match=f"k is {k}"):
        ops.rescore(scores, indices, cores, num_keys, k)


def test_a_cores_values_of_all_heads_lie_together():
    scores, indices = torch.randn(5, 3, 2, 2, 4), torch.randint(9, (5, 3, 2, 4))
    values, _ = ops.rescore(scores, indices, torch.rand(3, 2, 2, 2), 9, 6)
    assert values.transpose(1, 2).flatten(2).data_ptr() == values.data_ptr(), "the lookup's weights are no copy"
