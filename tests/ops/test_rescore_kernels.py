import pytest
import torch

from ultramem.ops.rescore import reference

pytest.importorskip("triton")
from ultramem.ops.rescore import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# tokens, heads, candidates, ranks, cores, k
SMALL = [
    (5, 2, 4, 2, 2, 6),
    (3, 1, 3, 1, 1, 9),
    (0, 2, 2, 2, 1, 1),
    (4, 2, 5, 4, 3, 11),
    (3, 2, 6, 2, 2, 6),  # 36 cells are padded to 64, as 8 x 8 would be
    (3, 2, 5, 2, 2, 4),  # 25 to 32: packed
    (2, 1, 11, 3, 2, 40),
]
LARGE = [(300, 2, 32, 2, 2, 32), (33, 2, 42, 2, 2, 42), (40, 1, 128, 3, 4, 256), (300, 1, 100, 2, 1, 7)]


def integers(size, device):
    """Inputs whose sums are small integers: exact in every order of summing, and full of ties."""
    tokens, heads, candidates, ranks, num_cores, k = size
    torch.manual_seed(0)
    scores = torch.randint(-2, 3, (tokens, heads, 2, ranks, candidates)).float()
    indices = torch.rand(tokens, heads, 2, 200).argsort(dim=-1)[..., :candidates].contiguous()
    cores = torch.randint(-2, 3, (heads, num_cores, ranks, ranks)).float()
    return scores.to(device), indices.to(device), cores.to(device), 200, k


def assert_equals_the_reference(scores, indices, cores, num_keys, k):
    values, slots, positions = kernels.rescore(scores, indices, cores, num_keys, k)
    expected, expected_slots, expected_positions = reference.rescore(scores, indices, cores, num_keys, k)
    assert torch.equal(positions, expected_positions)
    assert torch.equal(slots, expected_slots)
    assert torch.equal(values, expected)
    grad = torch.randint_like(values, -2, 3)
    ours = kernels.rescore_backward(grad, positions, scores, cores)
    theirs = reference.rescore_backward(grad, positions, scores, cores)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("size", SMALL, ids=str)
def test_equals_the_reference_ties_included(size, kernel_device):
    assert_equals_the_reference(*integers(size, kernel_device))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_equals_the_reference_at_full_size(size):
    assert_equals_the_reference(*integers(size, "cuda"))


def test_random_values_are_as_near_to_float64_as_plain_float32(kernel_device):
    torch.manual_seed(0)
    scores = torch.randn(7, 2, 2, 2, 6, device=kernel_device)
    indices = torch.rand(7, 2, 2, 50, device=kernel_device).argsort(dim=-1)[..., :6].contiguous()
    cores = torch.rand(2, 2, 2, 2, device=kernel_device)
    values, slots, _ = kernels.rescore(scores, indices, cores, 50, 9)
    exact, exact_slots, _ = reference.rescore(scores.double(), indices, cores.double(), 50, 9)
    plain, _, _ = reference.rescore(scores, indices, cores, 50, 9)
    assert torch.equal(slots, exact_slots)
    assert (values - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_two_runs_give_the_same_bits(kernel_device):
    scores, indices, cores, num_keys, k = integers((6, 1, 4, 2, 2, 5), kernel_device)
    scores = scores + torch.rand_like(scores)
    values, _, positions = kernels.rescore(scores, indices, cores, num_keys, k)
    runs = [kernels.rescore_backward(values, positions, scores, cores) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
