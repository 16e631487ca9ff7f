import copy

import pytest
import torch

from ultramem.optim import RowAdamW

SHAPE = (50, 8)
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def table(seed=0):
    return torch.nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)))


def gradient(step, rows=SHAPE[0]):
    return torch.randn(rows, SHAPE[1], generator=torch.Generator().manual_seed(1000 + step))


def sparse(rows, values):
    return torch.sparse_coo_tensor(torch.as_tensor(rows)[None], values, SHAPE, check_invariants=True)


def test_dense_gradients_are_torchs_adamw_bit_for_bit():
    ours, theirs = table(), table()
    row_adam, adam = RowAdamW([ours], **SETTINGS), torch.optim.AdamW([theirs], fused=True, **SETTINGS)
    for step in range(5):
        for group in (*row_adam.param_groups, *adam.param_groups):
            group["lr"] = 1e-2 / (step + 1)
        ours.grad, theirs.grad = gradient(step), gradient(step)
        row_adam.step()
        adam.step()
    assert torch.equal(ours, theirs)
    assert torch.equal(row_adam.state[ours]["exp_avg_sq"], adam.state[theirs]["exp_avg_sq"])


def test_sparse_gradients_that_touch_all_rows_are_adamw_too():
    ours, theirs = table(), table()
    row_adam, adam = RowAdamW([ours], **SETTINGS), torch.optim.AdamW([theirs], **SETTINGS)
    for step in range(5):
        shuffled = torch.randperm(SHAPE[0], generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = sparse(shuffled, gradient(step)[shuffled]), gradient(step)
        row_adam.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)


def test_lazy_steps_are_adamw_of_the_touched_rows_and_leave_the_others():
    ours = table()
    initial = ours.detach().clone()
    optimizer = RowAdamW([ours], **SETTINGS)
    exp_avg, exp_avg_sq = torch.zeros(SHAPE), torch.zeros(SHAPE)
    expected = initial.clone()
    for step, rows in enumerate([[3, 7, 9], [7], [9, 3]], start=1):
        values = gradient(step, rows=len(rows))
        ours.grad = sparse(rows, values)
        optimizer.step()
        exp_avg[rows] = 0.9 * exp_avg[rows] + 0.1 * values
        exp_avg_sq[rows] = 0.95 * exp_avg_sq[rows] + 0.05 * values**2
        mean, square = exp_avg[rows] / (1 - 0.9**step), exp_avg_sq[rows] / (1 - 0.95**step)
        expected[rows] -= 1e-2 * 0.1 * expected[rows] + 1e-2 * mean / (square.sqrt() + 1e-8)
        torch.testing.assert_close(ours.detach(), expected)
    untouched = [row for row in range(SHAPE[0]) if row not in (3, 7, 9)]
    assert torch.equal(ours[untouched], initial[untouched])
    assert not optimizer.state[ours]["exp_avg"][untouched].any()
    assert not optimizer.state[ours]["exp_avg_sq"][untouched].any()


def test_a_row_that_comes_twice_counts_with_its_sum():
    once, twice = table(), table()
    values = gradient(0, rows=3)
    once.grad = sparse([4, 2], torch.stack([values[0] + values[2], values[1]]))
    twice.grad = sparse([4, 2, 4], values)
    for parameter in (once, twice):
        RowAdamW([parameter], **SETTINGS).step()
    torch.testing.assert_close(once, twice)


def test_dense_and_sparse_steps_may_alternate_and_tables_have_their_own_counts():
    mixed, lazy = table(0), table(1)
    optimizer = RowAdamW([mixed, lazy], **SETTINGS)
    mixed.grad = gradient(0)
    optimizer.step()
    mixed.grad, lazy.grad = sparse([1], gradient(1, rows=1)), sparse([2], gradient(2, rows=1))
    optimizer.step()
    assert [optimizer.state[parameter]["step"].item() for parameter in (mixed, lazy)] == [2, 1]


def test_state_survives_saving_and_loading():
    ours = table()
    first = RowAdamW([ours], **SETTINGS)
    ours.grad = gradient(0)
    first.step()
    other = torch.nn.Parameter(ours.detach().clone())
    second = RowAdamW([other], **SETTINGS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, parameter in ((first, ours), (second, other)):
        parameter.grad = sparse([5, 6], gradient(1, rows=2))
        optimizer.step()
        parameter.grad = gradient(2)
        optimizer.step()
    assert torch.equal(ours, other)


def test_closure_gives_the_loss():
    parameter = table()
    optimizer = RowAdamW([parameter], **SETTINGS)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    before = parameter.square().sum().item()
    assert optimizer.step(closure).item() == before
    assert parameter.square().sum() < before


@pytest.mark.parametrize(
    ("setting", "message"), [({"lr": -1.0}, "lr is -1.0"), ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)")]
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        RowAdamW([table()], **setting)
