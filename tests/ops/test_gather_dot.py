import pytest
import torch

from ultramem import ops
from ultramem.ops.gather_dot import _gather_dot, _gather_dot_sparse

# tokens, slots a token, logical keys a side, expansion, width, rows beside those of the slots, first row
SIZES = [
    (7, 5, 10, 4, 12, 0, 0),
    (1, 1, 6, 9, 5, 3, 6),
    (0, 3, 4, 1, 8, 0, 0),
    (13, 17, 14, 4, 21, 11, 40),
    (9, 20, 4, 4, 6, 0, 0),
]


def operands(size, dtype=torch.float64):
    tokens, k, num_keys, expansion, width, other_rows, first_row = size
    torch.manual_seed(0)
    table = torch.randn(num_keys**2 // expansion + other_rows, width, dtype=dtype, requires_grad=True)
    inputs = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    slots = torch.randint(num_keys**2, (tokens, k))
    return table, slots, inputs, ops.Placement(num_keys, expansion, 3, first_row)


def naive(table, slots, inputs, placement):
    rows, _ = ops.physical_rows(slots, *placement, len(table))
    return torch.einsum("nkd,nd->nk", table[rows], inputs)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_gathered_rows_times_inputs_in_output_and_every_gradient(size, sparse):
    table, slots, inputs, placement = operands(size)
    out = ops.gather_dot(table, slots, inputs, **placement._asdict(), sparse=sparse)
    expected = naive(table, slots, inputs, placement)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad(out, (table, inputs), direction)
    theirs = torch.autograd.grad(expected, (table, inputs), direction)
    assert ours[0].is_sparse == sparse
    torch.testing.assert_close(ours[0].to_dense() if sparse else ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_it_is_the_transpose_of_lookup():
    table, slots, inputs, placement = operands(SIZES[0])
    weights = torch.randn(slots.shape, dtype=torch.float64)
    pooled = ops.lookup(table, slots, weights[:, None], **placement._asdict(), by_group=False)[:, 0]
    products = ops.gather_dot(table, slots, inputs, **placement._asdict())
    torch.testing.assert_close((pooled * inputs).sum(), (products * weights).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype):
    table, slots, inputs, placement = operands(SIZES[3])
    exact = naive(table.to(dtype).double(), slots, inputs.to(dtype).double(), placement)
    ours = ops.gather_dot(table.to(dtype), slots, inputs.to(dtype), **placement._asdict())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_gradients_have_their_operands_precision():
    table, slots, inputs, placement = operands(SIZES[0], torch.float32)
    low = inputs.detach().bfloat16().requires_grad_()
    ops.gather_dot(table, slots, low, **placement._asdict()).sum().backward()
    assert (table.grad.dtype, low.grad.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("operation", [_gather_dot, _gather_dot_sparse])
def test_custom_op_contract(operation):
    table, slots, inputs, placement = operands(SIZES[3], torch.float32)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if operation is _gather_dot:
        checks += ("test_aot_dispatch_dynamic",)
    torch.library.opcheck(operation, (table, slots, inputs, list(placement)), test_utils=checks)


@pytest.mark.parametrize(
    ("inputs", "num_keys", "first_row", "named"),
    [
        ((5, 8), 7, 0, "table has 9 rows"),
        ((4, 8), 6, 0, r"inputs \(4, 8\) do not fit slots \(5, 3\)"),
        ((5, 7), 6, 0, "width 8"),
        ((5, 8), 6, 9, "first_row is 9"),
    ],
)
def test_shapes_that_do_not_belong_together_are_named(inputs, num_keys, first_row, named):
    with pytest.raises(ValueError, match=named):
        ops.gather_dot(
            torch.randn(9, 8),
            torch.zeros(5, 3).long(),
            torch.randn(inputs),
            num_keys=num_keys,
            expansion=4,
            first_row=first_row,
        )
