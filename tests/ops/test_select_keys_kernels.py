import pytest
import torch

from ultramem.ops.select_keys import reference

pytest.importorskip("triton")
from ultramem.ops.select_keys import backward_kernels, kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# tokens, query sets, heads, keys, ranks, width, k
SMALL = [(5, 1, 2, 16, 2, 8, 4), (3, 2, 2, 9, 1, 5, 9), (0, 1, 1, 7, 3, 2, 2), (1, 1, 1, 300, 2, 70, 33)]
LARGE = [
    (300, 1, 2, 3584, 2, 256, 32),
    (70, 2, 2, 1000, 4, 40, 42),
    (513, 1, 1, 1138, 1, 192, 128),
    (300, 1, 2, 2200, 2, 250, 42),
]


def integers(size, dtype, device, spread=3):
    """Inputs whose scores are small integers: exact in every dtype and order of summing, and full of ties."""
    tokens, sets, heads, num_keys, ranks, width, k = size
    torch.manual_seed(0)
    query = torch.randint(1 - spread, spread, (tokens, sets, 2, ranks, width))
    keys = torch.randint(1 - spread, spread, (heads, 2, num_keys, ranks, width))
    filters = 2.0 ** torch.randint(-2, 2, (heads, 2, ranks)) * torch.randint(-1, 2, (heads, 2, ranks))
    return query.to(device, dtype), keys.to(device, dtype), filters.to(device), k


def assert_equals_the_reference(query, keys, filters, k):
    scores, indices = kernels.select_keys(query, keys, filters, k)
    expected, expected_indices = reference.select_keys(query, keys, filters, k)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(scores, expected)
    grad = torch.randint_like(scores, -2, 3)
    ours = backward_kernels.select_keys_backward(grad, indices, query, keys)
    theirs = reference.select_keys_backward(grad, indices, query, keys)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


# The interpreter's products do not know bfloat16.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", SMALL, ids=str)
def test_equals_the_reference_ties_included(size, dtype, kernel_device):
    assert_equals_the_reference(*integers(size, dtype, kernel_device))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("size", SMALL + LARGE, ids=str)
def test_equals_the_reference_at_full_size(size, dtype):
    assert_equals_the_reference(*integers(size, dtype, "cuda"))


def test_equal_scores_choose_the_first_keys_whatever_their_zeros_sign(kernel_device):
    query, keys, filters, k = integers((3, 1, 1, 50, 1, 4, 11), torch.float32, kernel_device)
    keys[:] = torch.tensor([0.0, -0.0], device=kernel_device).repeat(25)[:, None, None]
    _, indices = kernels.select_keys(query, keys, filters, k)
    assert (indices == torch.arange(11, device=kernel_device)).all()


def test_infinite_and_undefined_scores_still_choose_different_keys(kernel_device):
    query, keys, filters, k = integers((2, 1, 1, 21, 1, 4, 9), torch.float32, kernel_device)
    keys[:, :, 3:12] = float("-inf")
    keys[:, :, 12:15] = float("nan")
    _, indices = kernels.select_keys(query, keys, filters, k)
    assert indices.min() >= 0
    assert indices.max() < 21
    assert (indices.sort(dim=-1).values.diff(dim=-1) > 0).all()


def test_random_scores_are_as_near_to_float64_as_plain_float32(kernel_device):
    torch.manual_seed(0)
    query = torch.randn(9, 1, 2, 2, 24, device=kernel_device)
    keys = torch.randn(2, 2, 100, 2, 24, device=kernel_device)
    filters = torch.rand(2, 2, 2, device=kernel_device)
    scores, indices = kernels.select_keys(query, keys, filters, 7)
    exact, exact_indices = reference.select_keys(query.double(), keys.double(), filters.double(), 7)
    plain, _ = reference.select_keys(query, keys, filters, 7)
    assert torch.equal(indices, exact_indices)
    assert (scores - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_a_chunk_of_tokens_at_a_time_gives_the_same(kernel_device, monkeypatch):
    arguments = integers((5, 1, 2, 16, 2, 8, 4), torch.float32, kernel_device)
    whole = kernels.select_keys(*arguments)
    monkeypatch.setattr(kernels, "WORKSPACE_BYTES", 2 * 2 * 2 * 16 * 4)
    parts = kernels.select_keys(*arguments)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_two_runs_give_the_same_bits(kernel_device):
    tokens = 2000 if kernel_device.type == "cuda" else 3
    torch.manual_seed(0)
    query = torch.randn(tokens, 1, 2, 2, 24, device=kernel_device)
    keys, filters = torch.randn(1, 2, 20, 2, 24, device=kernel_device), torch.rand(1, 2, 2, device=kernel_device)
    gradient = torch.randn(tokens, 1, 2, 2, 4, device=kernel_device)

    def results():
        scores, indices = kernels.select_keys(query, keys, filters, 4)
        return scores, indices, *backward_kernels.select_keys_backward(gradient, indices, query, keys)

    assert all(torch.equal(one, two) for one, two in zip(results(), results(), strict=True))


def test_a_key_that_every_token_chooses_gets_its_whole_gradient(kernel_device):
    query, keys, filters, k = integers((40, 1, 1, 12, 1, 8, 2), torch.float32, kernel_device)
    query[:] = query[:1]
    assert_equals_the_reference(query, keys, filters, k)
