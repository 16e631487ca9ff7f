import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramem import ops
from ultramem.ops.lookup import _lookup, _lookup_sparse


def naive(table, slots, weights, num_keys, expansion, seed, first_row=0, by_group=True):
    """The sum over virtual tables: one row at a time."""
    rows, groups = ops.physical_rows(slots, num_keys, expansion, seed)
    rows = (first_row + rows) % len(table)
    if not by_group:
        expansion, groups = 1, torch.zeros_like(groups)
    num_tokens, num_cores, num_slots = weights.shape
    out = table.new_zeros(num_tokens, expansion, num_cores, table.shape[1] // num_cores)
    chunks = table.view(len(table), num_cores, -1)
    for token in range(num_tokens):
        for k in range(num_slots):
            out[token, groups[token, k]] += weights[token, :, k, None] * chunks[rows[token, k]]
    return out.flatten(2) + 0 * (table.sum() + weights.sum())  # an empty batch has a gradient too


# tokens, slots a token, logical keys a side, expansion, cores, width
SIZES = [
    (7, 5, 10, 4, 2, 12),
    (1, 1, 6, 9, 1, 5),
    (0, 3, 4, 1, 1, 8),
    (13, 17, 14, 4, 3, 21),
    (4, 6, 12, 16, 4, 64),
    (9, 20, 4, 4, 2, 6),
]


# rows of the table beside those of the slots, where these begin, and whether groups are kept apart
WINDOWS = [(0, 0, True), (11, 7, True), (5, -1, False), (0, 0, False)]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pools_like_the_sum_over_virtual_tables(size, window, sparse):
    tokens, k, num_keys, expansion, cores, width = size
    other_rows, first_row, by_group = window
    num_rows = num_keys**2 // expansion + other_rows
    first_row %= num_rows
    torch.manual_seed(0)
    table = torch.randn(num_rows, width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(tokens, cores, k, dtype=torch.float64, requires_grad=True)
    slots = torch.randint(num_keys**2, (tokens, k))
    out = ops.lookup(
        table,
        slots,
        weights,
        num_keys=num_keys,
        expansion=expansion,
        seed=3,
        first_row=first_row,
        by_group=by_group,
        sparse=sparse,
    )
    expected = naive(table, slots, weights, num_keys, expansion, 3, first_row, by_group)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad(out, (table, weights), direction)
    theirs = torch.autograd.grad(expected, (table, weights), direction, materialize_grads=True)
    assert ours[0].is_sparse == sparse
    torch.testing.assert_close(ours[0].to_dense() if sparse else ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_a_row_read_twice_by_one_token_counts_twice():
    table = torch.randn(4, 3, requires_grad=True)
    out = ops.lookup(table, torch.tensor([[2, 2]]), torch.tensor([[[1.0, 3.0]]]), num_keys=2)
    torch.testing.assert_close(out[0, 0], 4 * table[2])
    out.sum().backward()
    torch.testing.assert_close(table.grad[2], torch.full((3,), 4.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_as_near_as_its_inputs_allow(dtype):
    torch.manual_seed(0)
    table = torch.randn(36, 16, dtype=torch.float64)
    weights = torch.randn(9, 2, 8, dtype=torch.float64)
    slots = torch.randint(36, (9, 8))
    exact = ops.lookup(table, slots, weights, num_keys=6)
    plain = torch.einsum("nik,nkiv->niv", weights.to(dtype), table.to(dtype)[slots].view(9, 8, 2, 8)).reshape(
        exact.shape
    )
    ours = ops.lookup(table.to(dtype), slots, weights.float(), num_keys=6)
    assert ours.dtype == dtype
    floor = torch.finfo(dtype).eps
    assert (ours.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max() + floor


@settings(max_examples=40, deadline=None)
@given(
    physical_side=st.integers(1, 12),
    root=st.sampled_from([2, 3, 4]),
    seed=st.integers(0, 2**40),
)
def test_every_row_serves_one_slot_of_each_group(physical_side, root, seed):
    num_keys, expansion = physical_side * root, root**2
    rows, groups = ops.physical_rows(torch.arange(num_keys**2), num_keys, expansion, seed)
    assert rows.min() >= 0
    assert rows.max() < num_keys**2 // expansion
    pairs = torch.bincount(rows * expansion + groups, minlength=num_keys**2)
    assert (pairs == 1).all()


def test_windows_of_one_table_wrap_at_its_end():
    slots = torch.arange(36)
    local, groups = ops.physical_rows(slots, 6, 4, 0)
    rows, same_groups = ops.physical_rows(slots, 6, 4, 0, first_row=8, num_rows=12)
    assert torch.equal(groups, same_groups)
    assert torch.equal(rows, torch.where(local < 4, local + 8, local - 4))


def test_copies_of_a_row_are_spread_like_random_ones():
    num_keys, expansion = 200, 4
    rows, groups = ops.physical_rows(torch.arange(num_keys**2), num_keys, expansion, 0)
    copies = (rows * expansion + groups).argsort().view(-1, expansion)
    grid_rows, grid_columns = copies // num_keys, copies % num_keys
    # Two copies share a grid row or column as often as two random slots would: 1 in 200 (10,000 pairs, sd 0.0007).
    for line in (grid_rows, grid_columns):
        assert (line[:, 0] == line[:, 1]).float().mean().item() == pytest.approx(1 / num_keys, abs=0.003)
    # And lie apart by no preferred distance: 10,000 draws of 40,000 distances give about 8,850 different ones.
    assert ((copies[:, 1] - copies[:, 0]) % num_keys**2).unique().numel() > 8000


def test_two_seeds_shuffle_differently():
    slots = torch.arange(100)
    first, second = (ops.physical_rows(slots, 10, 4, seed)[0] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_element_offsets_beyond_31_bits_are_right():
    if _free_gigabytes() < 8:
        pytest.skip("needs 8 GB of free memory for a table of more than 2**31 elements")
    num_keys, width = 258, 2**15
    table = torch.zeros(num_keys**2, width, dtype=torch.bfloat16)
    assert table.numel() > 2**31
    table[-1] = 1
    slots = torch.tensor([[num_keys**2 - 1, num_keys**2 - 2]])
    out = ops.lookup(table, slots, torch.ones(1, 1, 2), num_keys=num_keys)
    assert out.float().mean().item() == 1


def _free_gigabytes():
    with open("/proc/meminfo") as file:
        available = next(line for line in file if line.startswith("MemAvailable"))
    return int(available.split()[1]) / 2**20


@pytest.mark.parametrize("operation", [_lookup, _lookup_sparse])
def test_custom_op_contract(operation):
    torch.manual_seed(0)
    table = torch.randn(25, 12, requires_grad=True)
    weights = torch.randn(7, 3, 5, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if operation is _lookup:
        checks += ("test_aot_dispatch_dynamic",)
    for placement in (([10, 4, 1, 0], 4), ([6, 4, 1, 20], 1)):
        slots = torch.randint(placement[0][0] ** 2, (7, 5))
        torch.library.opcheck(operation, (table, slots, weights, *placement), test_utils=checks)


@pytest.mark.parametrize(
    ("slots", "weights", "num_keys", "named"),
    [((5, 3), (5, 2, 4), 6, "slots"), ((5, 3), (5, 2, 3), 7, "table has 9 rows"), ((5, 3), (5, 3, 3), 6, "3 cores")],
)
def test_shapes_that_do_not_belong_together_are_named(slots, weights, num_keys, named):
    with pytest.raises(ValueError, match=named):
        ops.lookup(torch.randn(9, 8), torch.zeros(slots).long(), torch.randn(weights), num_keys=num_keys, expansion=4)


@pytest.mark.parametrize("first_row", [-1, 9])
def test_a_window_that_begins_outside_is_named(first_row):
    with pytest.raises(ValueError, match=f"first_row is {first_row}: the table has rows 0 to 8"):
        ops.lookup(torch.randn(9, 8), torch.zeros(1, 1).long(), torch.ones(1, 1, 1), num_keys=2, first_row=first_row)


def test_the_pooled_rows_are_contiguous_where_every_number_has_its_core():
    table, slots, weights = torch.randn(36, 8), torch.randint(144, (5, 4)), torch.rand(5, 8, 4)
    assert ops.lookup(table, slots, weights, num_keys=12, expansion=4).is_contiguous()
