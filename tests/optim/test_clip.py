import math

import pytest
import torch

from ultramem.optim import RowAdamW, clip_factor, clip_gradients, clipped_step, gradient_norm


def sparse(rows, values, shape):
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=True)


def parameters(gradients):
    result = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
        parameter.grad = gradient
        result.append(parameter)
    return result


def test_equals_torch_on_dense_gradients():
    torch.manual_seed(0)
    gradients = [torch.randn(5, 3), torch.randn(7)]
    ours, theirs = parameters([g.clone() for g in gradients]), parameters([g.clone() for g in gradients])
    assert torch.equal(clip_gradients(ours, 0.5), torch.nn.utils.clip_grad_norm_(theirs, 0.5))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_a_row_of_several_micro_batches_counts_once_with_its_sum():
    torch.manual_seed(0)
    values = torch.randn(4, 3)
    touched, dense = sparse([1, 4, 1, 0], values, (6, 3)), torch.randn(2, 2)
    ours = parameters([touched, dense.clone()])
    theirs = parameters([touched.to_dense(), dense.clone()])
    torch.testing.assert_close(clip_gradients(ours, 0.5), torch.nn.utils.clip_grad_norm_(theirs, 0.5))
    torch.testing.assert_close(ours[0].grad.to_dense(), theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad)


def test_gradients_of_several_dtypes_get_one_factor():
    torch.manual_seed(0)
    values = [torch.randn(4, 3, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    values.append(torch.randn(2, 3).bfloat16())
    clipped = parameters([*(value.clone() for value in values[:3]), sparse([0, 4], values[3].clone(), (6, 3))])
    norm = torch.cat([value.double().flatten() for value in values]).norm()
    precision = torch.finfo(torch.bfloat16).eps  # a dtype's norm, and its factor, have its precision
    torch.testing.assert_close(clip_gradients(clipped, 0.5).double(), norm, rtol=precision, atol=0)
    for parameter, value in zip(clipped, values, strict=True):
        scaled = parameter.grad.values() if parameter.grad.is_sparse else parameter.grad
        torch.testing.assert_close(scaled.double(), value.double() * 0.5 / norm, rtol=2 * precision, atol=0)


def test_small_gradients_and_an_infinite_limit_change_nothing():
    (parameter,) = parameters([torch.tensor([3.0, 4.0])])
    for limit in (6.0, math.inf):
        assert clip_gradients([parameter], limit) == 5
        assert parameter.grad.tolist() == [3.0, 4.0]


def test_parameters_without_gradient_are_passed_over():
    (parameter,) = parameters([torch.tensor([3.0, 4.0])])
    assert clip_gradients([torch.nn.Parameter(torch.ones(2)), parameter], 1.0) == 5
    assert parameter.grad.norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("state", ["full", "small"])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_step_by_the_factor_leaves_the_tables_gradient_as_it_came(lazy, state):
    torch.manual_seed(0)
    values = torch.randn(2, 3).bfloat16()
    table, weight = parameters([sparse([1, 4], values, (6, 3)), torch.randn(7)])
    if not lazy:
        table.grad = table.grad.to_dense()
    norm = gradient_norm([table, weight])
    gradient = table.grad.values() if lazy else table.grad
    before, writes, weights_gradient = gradient.clone(), gradient._version, weight.grad.clone()
    factor = clip_factor(norm, 0.5)
    for optimizer in (RowAdamW([table], state=state), torch.optim.AdamW([weight])):
        clipped_step(optimizer, factor)
    assert torch.equal(gradient, before)
    assert gradient._version == writes
    assert torch.equal(weight.grad, weights_gradient * factor)
    assert table.any()


def test_the_factor_is_not_rounded_as_the_gradients_are():
    norm = torch.tensor(3.0, dtype=torch.bfloat16)
    assert torch.equal(clip_factor(norm, 1.0), torch.tensor(1 / (3 + 1e-6)))
    assert clip_factor(norm.double(), 1.0).dtype == torch.float64


@pytest.mark.parametrize("norm", [math.nan, math.inf, 0.0, 0.9])
def test_the_factor_is_one_of_a_norm_that_is_small_or_not_finite(norm):
    assert clip_factor(torch.tensor(norm), 1.0) == 1
    assert clip_factor(torch.tensor(norm), math.inf) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_scales_nothing(value):
    culprit, other = parameters([torch.tensor([value, 1.0]), torch.tensor([2.0])])
    assert not clip_gradients([culprit, other], 1.0).isfinite()
    assert culprit.grad[1] == 1
    assert other.grad == 2
