"""The Triton kernels of gather-dot: on a GPU where there is one, else their logic in Triton's interpreter."""

import pytest
import torch

from ultramem import ops
from ultramem.ops import Placement
from ultramem.ops.gather_dot import reference

kernels = pytest.importorskip("ultramem.ops.gather_dot.kernels")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = pytest.mark.gpu if ON_GPU else []

# tokens, slots a token, logical keys a side, expansion, width, rows beside those of the slots, first row
SIZES = [
    (7, 5, 10, 4, 12, 0, 0),
    (1, 1, 6, 9, 5, 3, 6),
    (0, 3, 4, 1, 8, 0, 0),
    (3, 18, 14, 4, 192, 11, 40),
    (2, 3, 4, 1, 4096, 0, 0),
]


def operands(size, dtype=torch.float32):
    tokens, k, num_keys, expansion, width, other_rows, first_row = size
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(num_keys**2 // expansion + other_rows, width, generator=generator).to(DEVICE, dtype)
    inputs = torch.randn(tokens, width, generator=generator).to(DEVICE, dtype)
    slots = torch.randint(num_keys**2, (tokens, k), generator=generator).to(DEVICE)
    gradient = torch.randn(tokens, k, generator=generator).to(DEVICE)
    return table, slots, inputs, gradient, Placement(num_keys, expansion, 3, first_row)


def all_results(implementation, table, slots, inputs, gradient, placement):
    """Products, dense table gradient, input gradient; and the last two again from the compact form."""
    products = implementation.gather_dot(table, slots, inputs, placement)
    dense, grad_inputs = implementation.gather_dot_backward(gradient, table, slots, inputs, placement)
    rows, compact, again = implementation.gather_dot_backward_rows(gradient, table, slots, inputs, placement)
    assert torch.equal(rows, rows.unique())
    return products, dense, grad_inputs, torch.zeros_like(table).index_copy_(0, rows, compact), again


@pytest.fixture
def poisoned_memory():
    """Memory that a kernel forgot to write holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_forward_and_every_gradient(size, dtype):
    """Nearer to float64 than twice what the reference loses at the same precision."""
    given = operands(size, dtype)
    exact = all_results(
        reference, *(tensor.double() if tensor.is_floating_point() else tensor for tensor in given[:4]), given[4]
    )
    for e, p, o in zip(exact, all_results(reference, *given), all_results(kernels, *given), strict=True):
        assert o.dtype == p.dtype
        assert o.shape == p.shape
        if o.numel():
            floor = torch.finfo(o.dtype).eps * e.abs().max()
            assert (o - e).abs().max() <= 2 * (p - e).abs().max() + floor


@pytest.mark.usefixtures("poisoned_memory")
def test_many_tokens_use_other_tiles(monkeypatch):
    given = operands((3, 18, 14, 4, 130, 0, 0))
    few = kernels.gather_dot(given[0], given[1], given[2], given[4])
    monkeypatch.setattr(kernels, "FEW_TOKENS", 0)
    torch.testing.assert_close(kernels.gather_dot(given[0], given[1], given[2], given[4]), few, rtol=0, atol=0)


def test_two_runs_give_the_same_bits():
    given = operands((2000 if ON_GPU else 3, 18, 8, 4, 24, 0, 0))
    given[1][:, :9] = 1  # a row that all tokens read
    first = all_results(kernels, *given)
    assert all(torch.equal(one, two) for one, two in zip(first, all_results(kernels, *given), strict=True))


@pytest.mark.skipif(not ON_GPU, reason="the dispatcher chooses a kernel for CUDA tensors only")
@pytest.mark.parametrize("sparse", [False, True])
def test_the_operation_uses_them_and_can_be_told_not_to(sparse):
    table, slots, inputs, gradient, placement = operands((50, 33, 40, 4, 96, 9, 7))
    results = []
    for dtype in (torch.float32, torch.float64):  # float64 is left to the reference
        rows, vectors = (tensor.detach().clone().to(dtype).requires_grad_() for tensor in (table, inputs))
        products = ops.gather_dot(rows, slots, vectors, **placement._asdict(), sparse=sparse)
        products.backward(gradient.to(dtype))
        results.append((products, rows.grad.to_dense() if sparse else rows.grad, vectors.grad))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, check_dtype=False, rtol=1e-4, atol=1e-4)
    with ops.use_reference():
        products = ops.gather_dot(table, slots, inputs, **placement._asdict())
    assert torch.equal(products, reference.gather_dot(table, slots, inputs, placement))


@pytest.mark.skipif(not ON_GPU, reason="needs gigabytes of memory and a GPU's speed")
def test_element_offsets_beyond_31_bits_are_right():
    width, placement = 512, Placement(4200, 4)
    table = torch.zeros(4200**2 // 4, width, dtype=torch.bfloat16, device=DEVICE)
    assert table.numel() > 2**31
    slots = torch.randint(4200**2, (64, 84), device=DEVICE)
    late = ops.physical_rows(slots, *placement)[0] > 2**31 // width
    assert late.any()
    table[2**31 // width + 1 :] = 1
    products = kernels.gather_dot(table, slots, torch.ones(64, width, device=DEVICE), placement)
    assert torch.equal(products, late.float() * width)
