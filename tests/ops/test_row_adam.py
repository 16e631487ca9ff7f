import pytest
import torch

from ultramem.ops import row_adam

SCALARS = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}


def operands(dtype=torch.float32, rows=(4, 1), width=5):
    generator = torch.Generator().manual_seed(0)
    table, exp_avg, gradients = (torch.randn(size, width, generator=generator).to(dtype) for size in (7, 7, len(rows)))
    exp_avg_sq = torch.rand(7, width, generator=generator).to(dtype)
    return table, exp_avg, exp_avg_sq, torch.tensor(rows, dtype=torch.int64), gradients


def test_custom_op_passes_opcheck():
    torch.library.opcheck(
        torch.ops.ultramem.row_adam.default, (*operands(), torch.tensor(3.0), *SCALARS.values()), raise_exception=True
    )


def test_low_precision_tables_lose_no_more_than_rounding():
    low, high = operands(torch.bfloat16), [t.double() if t.is_floating_point() else t for t in operands(torch.bfloat16)]
    step = torch.tensor(3.0)
    for tensors in (low, high):
        row_adam(*tensors, step=step, **SCALARS)
    for ours, exact in zip(low[:3], high[:3], strict=True):
        assert torch.equal(ours, exact.to(torch.bfloat16))


def test_no_rows_is_no_change():
    tensors = operands(rows=())
    before = [tensor.clone() for tensor in tensors]
    row_adam(*tensors, step=torch.tensor(1.0), **SCALARS)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_shapes_that_do_not_belong_together_are_refused():
    table, exp_avg, exp_avg_sq, rows, gradients = operands()
    with pytest.raises(ValueError, match="one shape"):
        row_adam(table, exp_avg[1:], exp_avg_sq, rows, gradients, step=torch.tensor(1.0), **SCALARS)
    with pytest.raises(ValueError, match="2 rows of a table"):
        row_adam(table, exp_avg, exp_avg_sq, rows, gradients[1:], step=torch.tensor(1.0), **SCALARS)
