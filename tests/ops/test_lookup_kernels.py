"""The Triton kernels of the lookup: on a GPU where there is one, else their logic in Triton's interpreter."""

import pytest
import torch

from ultramem import ops
from ultramem.ops.lookup import reference
from ultramem.ops.lookup.permutation import Placement

kernels = pytest.importorskip("ultramem.ops.lookup.kernels")
backward_kernels = pytest.importorskip("ultramem.ops.lookup.backward_kernels")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = pytest.mark.gpu if ON_GPU else []

# tokens, slots a token, logical keys a side, expansion, cores, width
SIZES = [(7, 5, 10, 4, 2, 12), (1, 1, 6, 9, 1, 5), (0, 3, 4, 1, 1, 8), (3, 40, 14, 4, 3, 21), (4, 6, 12, 16, 4, 192)]


@pytest.fixture
def poisoned_memory():
    """Memory that a kernel forgot to write holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=not ON_GPU)
def small_tiles(monkeypatch):
    """Little data crosses the borders of little tiles."""
    monkeypatch.setattr(backward_kernels, "READS_A_TILE", 16)


def operands(size, dtype=torch.float32, skewed=False, other_rows=0, first_row=0, num_groups=None):
    """The last three: in which window of the table the slots lie, and in how many groups they are pooled, if not E."""
    tokens, k, num_keys, expansion, cores, width = size
    num_groups = num_groups or expansion
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(num_keys**2 // expansion + other_rows, width, generator=generator).to(DEVICE, dtype)
    slots = torch.randint(num_keys**2, (tokens, k), generator=generator)
    if skewed:  # most reads are of one row
        slots[torch.rand(tokens, k, generator=generator) < 0.8] = 1
    weights = torch.randn(tokens, cores, k, generator=generator).to(DEVICE)
    gradient = torch.randn(tokens, num_groups, width, generator=generator).to(DEVICE, dtype)
    return table, slots.to(DEVICE), weights, gradient, (Placement(num_keys, expansion, 3, first_row), num_groups)


def all_results(forward, backward, table, slots, weights, gradient, placement):
    """Pooled rows, dense table gradient, weight gradient; and the last two again from the compact form."""
    pooled = forward(table, slots, weights, *placement)
    dense, grad_weights = backward.lookup_backward(gradient, table, slots, weights, *placement)
    rows, compact, grad_weights_again = backward.lookup_backward_rows(gradient, table, slots, weights, *placement)
    assert torch.equal(rows, rows.unique())
    spread = torch.zeros_like(table).index_copy_(0, rows, compact)
    return pooled, dense, grad_weights, spread, grad_weights_again


def assert_as_near_as_plain(operands, forward=kernels.lookup):
    """Nearer to float64 than twice what the reference loses at the same precision."""
    double = [tensor.double() if tensor.is_floating_point() else tensor for tensor in operands[:4]]
    exact = all_results(reference.lookup, reference, *double, operands[4])
    plain = all_results(reference.lookup, reference, *operands)
    ours = all_results(forward, backward_kernels, *operands)
    for e, p, o in zip(exact, plain, ours, strict=True):
        assert o.dtype == p.dtype
        assert o.shape == p.shape
        if o.numel():
            floor = torch.finfo(o.dtype).eps * e.abs().max()
            assert (o - e).abs().max() <= 2 * (p - e).abs().max() + floor


@pytest.mark.parametrize(("num_keys", "expansion"), [(2, 4), (9, 9), (30, 4), (100, 16), (5, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2**40 + 12345, 0xFFFFFFFF])
@pytest.mark.parametrize("window", [(0, 0), (7, -1)], ids=str)
@pytest.mark.parametrize("by_group", [True, False])
def test_reads_are_sorted_by_the_references_rows(num_keys, expansion, seed, window, by_group):
    slots = torch.arange(num_keys**2, device=DEVICE).view(expansion, -1)
    tokens, k = slots.shape
    weights = torch.empty(tokens, 3, k, device=DEVICE)
    num_rows = k + window[0]
    placement = Placement(num_keys, expansion, seed, window[1] % num_rows)
    num_groups = expansion if by_group else 1
    reads = backward_kernels.sort_reads(slots, weights, num_rows, placement, num_groups)
    rows, bags, weight_places = reads[:, : slots.numel()].long()
    expected_rows, groups = ops.physical_rows(slots, *placement, num_rows)
    token, slot = weight_places // (3 * k), weight_places % (3 * k)
    assert torch.equal(rows, expected_rows[token, slot])
    assert torch.equal(rows, rows.sort().values)
    assert torch.equal(bags, token * num_groups + groups[token, slot] % num_groups)
    assert torch.equal((token * k + slot).sort().values, torch.arange(slots.numel(), device=DEVICE))
    assert (reads[0, slots.numel() :] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_forward_and_every_gradient(size, dtype):
    assert_as_near_as_plain(operands(size, dtype))


@pytest.mark.usefixtures("poisoned_memory")
def test_the_widest_rows():
    assert_as_near_as_plain(operands((1, 3, 4, 4, 2, 4096), torch.bfloat16))


@pytest.mark.parametrize("window", [dict(other_rows=9, first_row=20), dict(num_groups=1)], ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_a_window_of_a_table_and_groups_pooled_together(window):
    assert_as_near_as_plain(operands((7, 5, 10, 4, 2, 12), torch.bfloat16, **window))


@pytest.mark.usefixtures("poisoned_memory")
def test_rows_whose_reads_cross_many_tiles(monkeypatch):
    monkeypatch.setattr(backward_kernels, "TILES_A_LOAD", 2)
    assert_as_near_as_plain(operands((11, 64, 12, 4, 1, 6), skewed=True))


@pytest.mark.usefixtures("poisoned_memory")
def test_reads_of_zipf_distributed_slots():
    table, slots, *others = operands((4, 40, 12, 4, 2, 6))
    quantiles = torch.arange(slots.numel())[torch.randperm(slots.numel())].view_as(slots) / slots.numel()
    slots = (144**quantiles).long().to(DEVICE) - 1  # the n-th is read 1 / n times as often as the first
    assert slots.flatten().bincount(minlength=144).argmax() == 0
    assert_as_near_as_plain((table, slots, *others))


@pytest.mark.parametrize(("width", "columns"), [(192, 128), (256, 128), (384, 64), (300, 64), (20, 64)])
def test_tiles_of_many_tokens_leave_few_columns_idle(width, columns):
    assert kernels._tile(4096, 4, width // 2, 2) == (32, columns)


@pytest.mark.parametrize("width", [192, 260])
@pytest.mark.usefixtures("poisoned_memory")
def test_many_tokens_use_other_tiles(width, monkeypatch):
    monkeypatch.setattr(kernels, "FEW_TOKENS", 0)
    assert_as_near_as_plain(operands((2, 70, 10, 4, 2, width), torch.float16))


@pytest.mark.parametrize(("width", "piece"), [(192, (64, 32)), (256, (64, 64)), (384, (128, 64)), (1024, (64, 64))])
def test_products_of_many_tokens_leave_no_columns_idle(width, piece):
    assert kernels._piece(width // 2)[:2] == piece


@pytest.mark.parametrize("num_groups", [4, 3, 1])
@pytest.mark.parametrize("width", [192, 30, 404])
@pytest.mark.usefixtures("poisoned_memory")
def test_many_tokens_of_bfloat16_rows_are_products(width, num_groups, monkeypatch):
    """In float16 in the interpreter, whose products do not know bfloat16."""
    monkeypatch.setattr(kernels, "FEW_TOKENS", 0)
    dtype = torch.bfloat16 if ON_GPU else torch.float16
    monkeypatch.setattr(kernels, "PRODUCT_DTYPE", dtype)
    monkeypatch.setattr(kernels, "_lookup_kernel", None)
    expansion = 9 if num_groups == 3 else 4
    assert_as_near_as_plain(operands((2, 70, 12, expansion, 2, width), dtype, num_groups=num_groups))


@pytest.mark.parametrize("small", [2.0**-11, 2.0**-20, 2.0**-23])
def test_every_bit_of_a_weight_counts_in_products(small, monkeypatch):
    monkeypatch.setattr(kernels, "FEW_TOKENS", 0)
    dtype = torch.bfloat16 if ON_GPU else torch.float16
    monkeypatch.setattr(kernels, "PRODUCT_DTYPE", dtype)
    table, slots = torch.ones(36, 64, dtype=dtype, device=DEVICE), torch.zeros(1, 2, dtype=torch.int64, device=DEVICE)
    weights = torch.tensor([[[1 + small, -1.0]]], device=DEVICE)
    pooled = kernels.lookup(table, slots, weights, Placement(6, 1), 1)
    assert torch.equal(pooled, torch.full_like(pooled, small))


def test_more_groups_than_a_product_holds_are_sums(monkeypatch):
    monkeypatch.setattr(kernels, "FEW_TOKENS", 0)
    monkeypatch.setattr(kernels, "_product_kernel", None)
    assert_as_near_as_plain(operands((3, 7, 12, 9, 2, 64), torch.bfloat16))


def test_two_runs_give_the_same_bits():
    given = operands((2000 if ON_GPU else 2, 64, 8, 4, 2, 24), skewed=True)
    first = all_results(kernels.lookup, backward_kernels, *given)
    for one, two in zip(first, all_results(kernels.lookup, backward_kernels, *given), strict=True):
        assert torch.equal(one, two)


@pytest.mark.skipif(not ON_GPU, reason="the dispatcher chooses a kernel for CUDA tensors only")
@pytest.mark.parametrize("sparse", [False, True])
def test_the_operation_uses_them_and_can_be_told_not_to(sparse):
    table, slots, weights, gradient, (placement, num_groups) = operands(
        (50, 33, 40, 4, 2, 96), other_rows=9, first_row=7
    )
    results = []
    for leaf in (table, table.double()):  # float64 is left to the reference
        leaf = leaf.clone().requires_grad_()
        values = weights.detach().clone().to(leaf.dtype).requires_grad_()
        pooled = ops.lookup(leaf, slots, values, **placement._asdict(), sparse=sparse)
        pooled.backward(gradient.to(leaf.dtype))
        results.append((pooled, leaf.grad.to_dense() if sparse else leaf.grad, values.grad))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, check_dtype=False, rtol=1e-4, atol=1e-4)
    with ops.use_reference():
        pooled = ops.lookup(table, slots, weights, **placement._asdict())
    assert torch.equal(pooled, reference.lookup(table, slots, weights, placement, num_groups))


@pytest.mark.skipif(not ON_GPU, reason="needs gigabytes of memory and a GPU's speed")
def test_element_offsets_beyond_31_bits_are_right():
    num_keys, expansion, width = 4200, 4, 512
    placement = Placement(num_keys, expansion)
    table = torch.zeros(num_keys**2 // expansion, width, dtype=torch.bfloat16, device=DEVICE)
    assert table.numel() > 2**31
    slots = torch.randint(num_keys**2, (64, 84), device=DEVICE)
    rows, groups = ops.physical_rows(slots, num_keys, expansion, 0)
    late = rows > 2**31 // width
    assert late.any()
    table[2**31 // width + 1 :] = 1
    pooled = kernels.lookup(table, slots, torch.ones(64, 2, 84, device=DEVICE), placement, expansion)
    counts = torch.zeros(64, expansion, device=DEVICE).scatter_add_(1, groups, late.float())
    assert torch.equal(pooled.float(), counts[:, :, None].expand_as(pooled))
    gradient = torch.ones_like(pooled)
    dense, grad_weights = backward_kernels.lookup_backward(
        gradient, table, slots, torch.ones(64, 2, 84, device=DEVICE), placement, expansion
    )
    assert torch.equal(dense[:, 0].float(), rows.flatten().bincount(minlength=len(table)).float())
    assert torch.equal(grad_weights, (late[:, None] * width / 2).expand_as(grad_weights))
