"""The Triton kernel of row Adam: on a GPU where there is one, else its logic in Triton's interpreter."""

import pytest
import torch

from ultramem.ops.row_adam import reference

kernels = pytest.importorskip("ultramem.ops.row_adam.kernels")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = pytest.mark.gpu if ON_GPU else []

SCALARS = (0.1, 0.9, 0.95, 1e-8, 0.1)  # learning rate, betas, epsilon, weight decay


def operands(dtype, moment_dtype, width, parts, chosen):
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([0, 5, 6, 36]) if chosen else None
    table, exp_avg, gradients = (
        torch.randn(size, width, generator=generator) for size in (37, 37, 4 if chosen else 37)
    )
    exp_avg_sq = torch.rand(37, parts, generator=generator)
    operands = table.to(dtype), exp_avg.to(moment_dtype), exp_avg_sq, rows, gradients.to(dtype), torch.tensor(3.0)
    return [None if operand is None else operand.to(DEVICE) for operand in operands]


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize(("width", "parts"), [(12, 12), (12, 1), (21, 3), (2100, 2)])
@pytest.mark.parametrize(
    ("dtype", "moment_dtype"),
    [(torch.float32, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_steps_as_the_reference(dtype, moment_dtype, width, parts, chosen):
    ours, theirs = (operands(dtype, moment_dtype, width, parts, chosen) for _ in range(2))
    kernels.row_adam(*ours, *SCALARS, 7)
    reference.row_adam(*theirs, *SCALARS, 7)
    for one, two in zip(ours[:3], theirs[:3], strict=True):
        # Sums of another order may round to the neighbour in what is stored.
        torch.testing.assert_close(one, two, rtol=2 * torch.finfo(one.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize(("width", "parts"), [(12, 12), (12, 1), (21, 3), (2100, 2)])
def test_a_factor_multiplies_the_gradient_in_float32(width, parts, chosen):
    ours, theirs = (operands(torch.float32, torch.float32, width, parts, chosen) for _ in range(2))
    factor = torch.tensor(0.3, device=DEVICE)
    ours[4] = ours[4].bfloat16()
    theirs[4] = ours[4].float() * factor
    kernels.row_adam(*ours, *SCALARS, 7, factor)
    reference.row_adam(*theirs, *SCALARS, 7)
    for one, two in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(one, two, rtol=2 * torch.finfo(one.dtype).eps, atol=1e-6)


def test_a_bfloat16_table_is_rounded_after_the_factor():
    ours, theirs = (operands(torch.bfloat16, torch.bfloat16, 300, 1, False) for _ in range(2))
    factor = torch.tensor(0.3, device=DEVICE)
    theirs[4] = theirs[4].float() * factor
    kernels.row_adam(*ours, *SCALARS, 7, factor)
    reference.row_adam(*theirs, *SCALARS, 7)
    assert (ours[0] != theirs[0]).float().mean() < 0.003  # as in the test of the noise
    torch.testing.assert_close(ours[0], theirs[0], rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(ours[2], theirs[2])


@pytest.mark.parametrize("seed", [0, 2**40 + 3])
def test_bfloat16_is_rounded_by_the_references_noise(seed):
    ours, theirs = (operands(torch.bfloat16, torch.float32, 300, 300, True) for _ in range(2))
    kernels.row_adam(*ours, *SCALARS, seed)
    reference.row_adam(*theirs, *SCALARS, seed)
    # The float32 numbers before rounding differ in their last bits, so the noise may tip a few of a thousand.
    assert (ours[0] != theirs[0]).float().mean() < 0.003
    torch.testing.assert_close(ours[0], theirs[0], rtol=2**-7, atol=1e-6)


def test_two_runs_give_the_same_bits():
    runs = [operands(torch.bfloat16, torch.bfloat16, 300, 1, True) for _ in range(2)]
    for run in runs:
        kernels.row_adam(*run, *SCALARS, 7)
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


def test_no_rows_are_no_change():
    given = operands(torch.float32, torch.float32, 12, 12, True)
    given[3], given[4] = given[3][:0], given[4][:0]
    before = [tensor.clone() for tensor in given]
    kernels.row_adam(*given, *SCALARS, 0)
    assert all(torch.equal(one, two) for one, two in zip(given, before, strict=True))


def test_a_beta_of_zero_forgets_at_once():
    given = operands(torch.float32, torch.float32, 12, 12, False)
    kernels.row_adam(*given, 0.1, 0.0, 0.0, 0.0, 0.0, 0)
    torch.testing.assert_close(given[1], given[4])
    torch.testing.assert_close(given[2], given[4].square())


@pytest.mark.skipif(not ON_GPU, reason="needs gigabytes of memory and a GPU's speed")
def test_element_offsets_beyond_31_bits_are_right():
    table = torch.zeros(2**22 + 8, 512, dtype=torch.bfloat16, device=DEVICE)
    exp_avg = torch.zeros_like(table)
    exp_avg_sq = torch.zeros(len(table), 1, device=DEVICE)
    rows = torch.tensor([1, len(table) - 1], device=DEVICE)
    gradients = torch.ones(2, 512, dtype=torch.bfloat16, device=DEVICE)
    kernels.row_adam(table, exp_avg, exp_avg_sq, rows, gradients, torch.tensor(1.0), 1.0, 0.9, 0.95, 1e-8, 0.0, 0)
    assert table[rows].float().mean().item() == pytest.approx(-1, abs=0.01)
    assert table.count_nonzero().item() == 2 * 512
