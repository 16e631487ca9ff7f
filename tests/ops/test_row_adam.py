import pytest
import torch

from ultramem.ops import row_adam

SCALARS = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}


def operands(dtype=torch.float32, rows=(4, 1), width=5):
    generator = torch.Generator().manual_seed(0)
    table, exp_avg, gradients = (torch.randn(size, width, generator=generator).to(dtype) for size in (7, 7, len(rows)))
    exp_avg_sq = torch.rand(7, width, generator=generator).to(dtype)
    return table, exp_avg, exp_avg_sq, torch.tensor(rows, dtype=torch.int64), gradients


@pytest.mark.parametrize("factor", [None, torch.tensor(0.3)], ids=str)
def test_custom_op_passes_opcheck(factor):
    torch.library.opcheck(
        torch.ops.ultramem.row_adam.default,
        (*operands(), torch.tensor(3.0), *SCALARS.values(), 0, factor, None),
        raise_exception=True,
    )


def test_no_argument_has_a_default_that_the_dispatcher_would_keep_from_a_kernel():
    arguments = torch.ops.ultramem.row_adam.default._schema.arguments
    assert {"seed", "gradient_factor", "mean_squares"} <= {argument.name for argument in arguments}
    assert not any(argument.has_default_value() for argument in arguments)


@pytest.mark.parametrize("parts", [1, 3, 21])
@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_factor_is_the_gradient_multiplied_before_anything_is_rounded(dtype, chosen, parts):
    wide = torch.promote_types(dtype, torch.float32)
    factor = torch.tensor(0.3, dtype=wide)
    tables = []
    for scaled_first in (True, False):
        table, exp_avg, _, rows, gradients = operands(dtype, rows=(4, 1) if chosen else range(7), width=21)
        state = table, exp_avg, torch.ones(7, parts, dtype=wide)
        row_adam(
            *state,
            rows if chosen else None,
            gradients.to(wide) * factor if scaled_first else gradients,
            step=torch.tensor(3.0),
            gradient_factor=None if scaled_first else factor,
            **SCALARS,
        )
        tables.append(state)
    assert all(torch.equal(one, two) for one, two in zip(*tables, strict=True))


def test_a_factor_of_one_is_none():
    with_factor, without = operands(), operands()
    row_adam(*with_factor, step=torch.tensor(3.0), gradient_factor=torch.tensor(1.0), **SCALARS)
    row_adam(*without, step=torch.tensor(3.0), **SCALARS)
    assert all(torch.equal(one, two) for one, two in zip(with_factor, without, strict=True))


def test_low_precision_tables_lose_no_more_than_rounding():
    low, high = operands(torch.bfloat16), [t.double() if t.is_floating_point() else t for t in operands(torch.bfloat16)]
    step = torch.tensor(3.0)
    for tensors in (low, high):
        row_adam(*tensors, step=step, **SCALARS)
    for ours, exact in zip(low[1:3], high[1:3], strict=True):
        assert torch.equal(ours, exact.to(torch.bfloat16))
    # The parameter goes to one of its two neighbours: less than a unit in the last of eight places away.
    assert ((low[0].double() - high[0]).abs() <= high[0].abs() * 2**-7).all()


def test_stochastic_rounding_keeps_updates_that_are_too_small_for_bfloat16():
    table = torch.ones(64, 128, dtype=torch.bfloat16)
    moments, gradients = (torch.zeros(64, 128), torch.zeros(64, 128)), torch.ones(64, 128)
    for step in range(1, 11):
        row_adam(table, *moments, None, gradients, step=torch.tensor(float(step)), **SCALARS | {"learning_rate": 1e-4})
    # Ten steps of 1.1e-4 down from 1, where neighbours are 2**-8 apart; 8192 elements: sd of the mean 2e-5.
    assert table.float().mean().item() == pytest.approx(1 - 1.1e-3, abs=1e-4)


def test_rounding_depends_on_seed_step_and_element_only():
    stepped = []
    for seed, step in [(0, 1.0), (0, 1.0), (1, 1.0), (0, 2.0)]:
        table = torch.full((64, 64), 1 / 3).bfloat16()
        moments = torch.zeros(64, 64), torch.zeros(64, 64)
        row_adam(table, *moments, None, torch.ones(64, 64), step=torch.tensor(step), **SCALARS, seed=seed)
        stepped.append(table)
    assert torch.equal(stepped[0], stepped[1])
    assert not torch.equal(stepped[0], stepped[2])
    assert not torch.equal(stepped[0], stepped[3])
    assert stepped[0].unique().numel() == 2


def test_values_that_are_not_finite_stay_so():
    table = torch.tensor([[float("inf"), float("-inf"), float("nan"), 1.0]], dtype=torch.bfloat16)
    moments, gradients = (torch.zeros(1, 4), torch.zeros(1, 4)), torch.zeros(1, 4)
    row_adam(table, *moments, None, gradients, step=torch.tensor(1.0), **SCALARS | {"weight_decay": 0.0})
    assert table.tolist()[0][:2] == [float("inf"), float("-inf")]
    assert table[0, 2].isnan()
    assert table[0, 3] == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_a_shared_second_moment_is_the_mean_of_its_part(parts):
    table, exp_avg, _, rows, gradients = operands(width=6)
    shared = torch.rand(7, parts)
    expected = 0.95 * shared[rows] + 0.05 * gradients.square().view(2, parts, -1).mean(dim=2)
    initial = table.clone()
    row_adam(table, exp_avg, shared, rows, gradients, step=torch.tensor(3.0), **SCALARS)
    torch.testing.assert_close(shared[rows], expected)
    denominator = (expected / (1 - 0.95**3)).sqrt().repeat_interleave(6 // parts, dim=1) + 1e-8
    update = exp_avg[rows] / (1 - 0.9**3) / denominator
    torch.testing.assert_close(table[rows], initial[rows] * 0.99 - 0.1 * update)


def test_a_part_of_the_columns_steps_as_the_whole_rows_do():
    table, exp_avg, _, rows, gradients = operands(width=6)
    whole = table.clone(), exp_avg.clone(), torch.ones(7, 1)
    row_adam(*whole, rows, gradients, step=torch.tensor(3.0), **SCALARS)
    part = table[:, 2:].clone(), exp_avg[:, 2:].clone(), torch.ones(7, 1)
    squares = gradients.square().mean(dim=1, keepdim=True)
    row_adam(*part, rows, gradients[:, 2:], step=torch.tensor(3.0), **SCALARS, mean_squares=squares)
    assert torch.equal(part[0], whole[0][:, 2:])
    assert torch.equal(part[2], whole[2])


def test_no_rows_is_no_change():
    tensors = operands(rows=())
    before = [tensor.clone() for tensor in tensors]
    row_adam(*tensors, step=torch.tensor(1.0), **SCALARS)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_shapes_that_do_not_belong_together_are_refused():
    table, exp_avg, exp_avg_sq, rows, gradients = operands()
    with pytest.raises(ValueError, match="one shape"):
        row_adam(table, exp_avg[1:], exp_avg_sq, rows, gradients, step=torch.tensor(1.0), **SCALARS)
    with pytest.raises(ValueError, match="G a divisor of the width 5"):
        row_adam(table, exp_avg, exp_avg_sq[:, :2], rows, gradients, step=torch.tensor(1.0), **SCALARS)
    with pytest.raises(ValueError, match=r"mean_squares \(7, 5\): it must be \(2, 5\)"):
        row_adam(*operands(), step=torch.tensor(1.0), **SCALARS, mean_squares=torch.ones(7, 5))
    with pytest.raises(ValueError, match="2 rows of a table"):
        row_adam(table, exp_avg, exp_avg_sq, rows, gradients[1:], step=torch.tensor(1.0), **SCALARS)
