import pytest
import torch

from ultramem import ops
from ultramem.ops.select_keys import _select_keys
from ultramem.ops.top_k import top_k


def naive(query, keys, filters, k):
    query = query.expand(-1, keys.shape[0], -1, -1, -1)
    scores = torch.einsum("nhsrd,hskrd->nhsrk", query, keys)
    order = torch.einsum("hsr,nhsrk->nhsk", filters, scores).sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return scores.gather(-1, order[:, :, :, None].expand(-1, -1, -1, keys.shape[3], -1)), order


# tokens, query sets, heads, keys, ranks, width, k
SIZES = [(5, 1, 2, 16, 2, 8, 4), (3, 2, 2, 9, 1, 5, 9), (0, 1, 1, 7, 3, 2, 2), (11, 1, 3, 33, 4, 7, 6)]


def make(size, dtype=torch.float64):
    tokens, sets, heads, num_keys, ranks, width, k = size
    torch.manual_seed(0)
    query = torch.randn(tokens, sets, 2, ranks, width, dtype=dtype, requires_grad=True)
    keys = torch.randn(heads, 2, num_keys, ranks, width, dtype=dtype, requires_grad=True)
    return query, keys, torch.rand(heads, 2, ranks, dtype=dtype), k


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_sorting_all_scores_in_output_and_every_gradient(size):
    query, keys, filters, k = make(size)
    scores, indices = ops.select_keys(query, keys, filters, k)
    expected, order = naive(query, keys, filters, k)
    assert torch.equal(indices, order)
    torch.testing.assert_close(scores, expected)
    direction = torch.randn_like(scores)
    ours = torch.autograd.grad(scores, (query, keys), direction)
    theirs = torch.autograd.grad(expected, (query, keys), direction, materialize_grads=True)
    torch.testing.assert_close(ours, theirs)


def test_low_precision_inputs_are_scored_in_float32():
    query, keys, filters, k = make(SIZES[0], torch.bfloat16)
    scores, indices = ops.select_keys(query, keys, filters, k)
    expected, order = naive(query.float(), keys.float(), filters.float(), k)
    assert scores.dtype == torch.float32
    assert torch.equal(indices, order)
    torch.testing.assert_close(scores, expected)


def test_autocast_does_not_lower_the_precision_of_scores():
    query, keys, filters, k = make(SIZES[0], torch.float32)
    plain = ops.select_keys(query, keys, filters, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = ops.select_keys(query, keys, filters, k)
    assert torch.equal(plain[0], within[0])


def test_ties_go_to_the_lower_index():
    torch.manual_seed(0)
    # Small whole numbers, so that sums are exact and equal scores are equal to the bit.
    query, keys = (torch.randint(-3, 4, shape).double() for shape in ((6, 1, 2, 2, 8), (2, 2, 16, 2, 8)))
    doubled, filters = torch.cat([keys, keys], dim=2), torch.ones(2, 2, 2, dtype=torch.float64)
    _, indices = ops.select_keys(query, doubled, filters, 9)
    _, expected = naive(query, doubled, filters, 9)
    assert torch.equal(indices, expected)


def test_top_k_of_equal_scores_is_the_first_ones():
    values, indices = top_k(torch.tensor([[1.0, 2, 2, 2, 0], [5, 4, 3, 2, 1], [0, 0, 0, 0, 0]]), 3)
    assert indices.tolist() == [[1, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert values.tolist() == [[2, 2, 2], [5, 4, 3], [0, 0, 0]]


def test_custom_op_contract():
    torch.library.opcheck(_select_keys, make(SIZES[0], torch.float32))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(k=17), "k is 17"),
        (dict(query=torch.randn(5, 2, 2, 3, 8)), "query"),
        (dict(filters=torch.ones(2, 2, 3)), "filter"),
    ],
)
def test_shapes_that_do_not_belong_together_are_named(change, named):
    query, keys, filters, k = make(SIZES[0], torch.float32)
    arguments = dict(query=query, filters=filters, k=k) | change
    with pytest.raises(ValueError, match=named):
        ops.select_keys(arguments["query"], keys, arguments["filters"], arguments["k"])
