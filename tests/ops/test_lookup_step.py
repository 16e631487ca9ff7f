"""The lookup's backward that steps the table: its kernels against the two operations that it joins."""

import pytest
import torch

from ultramem import ops
from ultramem.ops.lookup.permutation import Placement
from ultramem.ops.lookup_step import reference

kernels = pytest.importorskip("ultramem.ops.lookup_step.kernels")
backward_kernels = pytest.importorskip("ultramem.ops.lookup.backward_kernels")

ADAM = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
# tokens, slots a token, logical keys a side, expansion, cores, width
SIZES = [(7, 5, 10, 4, 2, 12), (0, 3, 4, 1, 1, 8), (3, 40, 14, 4, 3, 21)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, kernel_device):
    """Little data crosses the borders of little tiles."""
    if kernel_device.type == "cpu":
        monkeypatch.setattr(backward_kernels, "READS_A_TILE", 16)


def operands(size, device, dtype=torch.float32, moments_a_row=None):
    """What the operation takes, its state in the middle of a run."""
    tokens, k, num_keys, expansion, cores, width = size
    generator = torch.Generator().manual_seed(0)
    rows = num_keys**2 // expansion

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    table, exp_avg = normal(rows, width).to(dtype), 0.1 * normal(rows, width)
    exp_avg_sq = normal(rows, moments_a_row or width).square()
    slots = torch.randint(num_keys**2, (tokens, k), generator=generator)
    slots[torch.rand(tokens, k, generator=generator) < 0.4] = 1  # a row whose reads cross tiles
    gradient = normal(tokens, expansion, width).to(dtype)
    step = torch.tensor(3.0, device=device)
    placement = Placement(num_keys, expansion, 3)
    return [gradient, table, exp_avg, exp_avg_sq, slots.to(device), normal(tokens, cores, k), step], placement


def stepped(function, tensors, placement, *, lazy):
    """The weights' gradient, the table and both moments afterwards."""
    tensors = [tensor.clone() for tensor in tensors]
    grad_weights = function(*tensors, placement, *ADAM.values(), lazy, 5)
    return grad_weights, *tensors[1:4]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("moments_a_row", [None, 1])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernels_are_as_near_to_float64_as_the_reference(size, moments_a_row, lazy, kernel_device):
    tensors, placement = operands(size, kernel_device, moments_a_row=moments_a_row)
    double = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    exact = stepped(reference.lookup_step, double, placement, lazy=lazy)
    plain = stepped(reference.lookup_step, tensors, placement, lazy=lazy)
    ours = stepped(kernels.lookup_step, tensors, placement, lazy=lazy)
    for e, p, o in zip(exact, plain, ours, strict=True):
        assert o.shape == p.shape
        if o.numel():
            floor = 4 * torch.finfo(o.dtype).eps * e.abs().max()
            assert (o - e).abs().max() <= 2 * (p - e).abs().max() + floor


def test_a_bfloat16_table_is_rounded_to_one_of_its_neighbours(kernel_device):
    tensors, placement = operands(SIZES[0], kernel_device, torch.bfloat16, moments_a_row=1)
    wide = [tensors[0], tensors[1].float(), *tensors[2:]]
    exact = stepped(kernels.lookup_step, wide, placement, lazy=False)[1]
    ours = stepped(kernels.lookup_step, tensors, placement, lazy=False)[1].float()
    assert not torch.equal(ours, exact.bfloat16().float())
    assert ((ours - exact).abs() <= 2**-7 * exact.abs() + 1e-30).all()


def test_two_runs_give_the_same_bits(kernel_device):
    tensors, placement = operands(SIZES[0], kernel_device, torch.bfloat16, moments_a_row=1)
    runs = [stepped(kernels.lookup_step, tensors, placement, lazy=True) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


@pytest.mark.parametrize("lazy", [False, True])
def test_it_is_the_lookups_backward_and_row_adam(lazy):
    (gradient, table, exp_avg, exp_avg_sq, slots, weights, step), placement = operands(SIZES[0], "cpu")
    leaf, leaf_weights = table.clone().requires_grad_(), weights.clone().requires_grad_()
    where = {"num_keys": placement.num_keys, "expansion": placement.expansion, "seed": placement.seed}
    pooled = ops.lookup(leaf, slots, leaf_weights, **where, sparse=lazy)
    pooled.backward(gradient)
    apart = [table.clone(), exp_avg.clone(), exp_avg_sq.clone()]
    rows, row_gradients = None, leaf.grad
    if lazy:
        row_gradients = leaf.grad.coalesce()
        rows, row_gradients = row_gradients.indices()[0], row_gradients.values()
    ops.row_adam(*apart, rows, row_gradients, step=step, **ADAM)

    together = [table, exp_avg, exp_avg_sq]
    grad_weights = ops.lookup_step(
        gradient, *together, slots, weights, placement=placement, step=step, lazy=lazy, **ADAM
    )
    assert torch.equal(grad_weights, leaf_weights.grad)
    assert all(torch.equal(one, two) for one, two in zip(together, apart, strict=True))


def test_a_second_moment_of_another_shape_is_refused():
    (gradient, table, exp_avg, _, slots, weights, step), placement = operands(SIZES[0], "cpu")
    wrong = torch.zeros(len(table), 2)
    with pytest.raises(ValueError, match=r"exp_avg_sq \(25, 2\): it must be \(25, 12\) or \(25, 1\)"):
        ops.lookup_step(gradient, table, exp_avg, wrong, slots, weights, placement=placement, step=step, **ADAM)
