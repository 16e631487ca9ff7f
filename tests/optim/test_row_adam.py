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


@pytest.mark.parametrize("state", ["full", "small"])
def test_the_measured_share_of_touched_rows_decides_which_are_stepped(state):
    measured, told, dense = table(), table(), table()
    optimizers = [RowAdamW([parameter], state=state, **SETTINGS) for parameter in (told, dense)]
    optimizers.append(RowAdamW([measured], state=state, lazy_share=0.5, **SETTINGS))

    def step(rows):
        for parameter in (measured, told, dense):
            parameter.grad = sparse(range(rows), gradient(rows, rows))
        dense.grad = dense.grad.to_dense()
        for optimizer in optimizers:
            optimizer.step()

    step(25)  # of 50
    assert torch.equal(measured, told)
    assert not torch.equal(measured, dense)
    for parameter in (told, dense):
        parameter.data.copy_(measured.data)
    for optimizer in optimizers:
        optimizer.state.clear()
    step(26)
    torch.testing.assert_close(measured, dense)
    assert not torch.equal(measured[26:], told[26:])


def test_a_copy_decides_likewise():
    optimizer = copy.deepcopy(RowAdamW([table()], lazy_share=0.5, **SETTINGS))
    (copied,) = optimizer.param_groups[0]["params"]
    copied.grad = sparse(range(26), gradient(0, 26))
    optimizer.step()
    assert not torch.equal(copied[26:], table()[26:])


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


def test_the_small_state_is_a_bfloat16_moment_and_one_number_a_row():
    ours = table()
    optimizer = RowAdamW([ours], **SETTINGS, state="small")
    initial, values = ours.detach().clone(), gradient(1)
    ours.grad = values
    optimizer.step()
    state = optimizer.state[ours]
    assert (state["exp_avg"].dtype, state["exp_avg"].shape) == (torch.bfloat16, SHAPE)
    assert (state["exp_avg_sq"].dtype, state["exp_avg_sq"].shape) == (torch.float32, (SHAPE[0], 1))
    # The first step is the gradient over the root of its row's mean square.
    root = values.square().mean(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(ours.detach(), initial * (1 - 1e-3) - 1e-2 * values / (root + 1e-8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state", ["full", "small"])
@pytest.mark.parametrize("lazy", [False, True], ids=["dense", "lazy"])
def test_every_form_finds_the_minimum(state, dtype, lazy):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(SHAPE, generator=generator)
    parameter = torch.nn.Parameter(torch.zeros(SHAPE, dtype=dtype))
    optimizer = RowAdamW([parameter], lr=0.1, state=state)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        rows = torch.randperm(SHAPE[0], generator=generator)[:20]
        noise = 0.1 * torch.randn(20, SHAPE[1], generator=generator)
        values = (parameter.detach().float()[rows] - target[rows] + noise).to(dtype)
        parameter.grad = sparse(rows, values) if lazy else sparse(rows, values).to_dense()
        optimizer.step()
    # bfloat16 holds numbers about 2 to half of 2**-7.
    assert (parameter.float() - target).square().mean().sqrt() < 0.05


def test_updates_below_the_precision_of_bfloat16_count_on_average():
    parameter = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = RowAdamW([parameter], lr=1e-4)
    for _ in range(20):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    # 20 steps of 1e-4 where neighbours are 2**-8 apart.
    assert parameter.float().mean().item() == pytest.approx(1 - 2e-3, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state", ["full", "small"])
def test_loading_keeps_every_states_precision(state, dtype):
    parameter = torch.nn.Parameter(table().detach().to(dtype))
    optimizer = RowAdamW([parameter], **SETTINGS, state=state)
    parameter.grad = gradient(0).to(dtype)
    optimizer.step()
    other = RowAdamW([torch.nn.Parameter(parameter.detach().clone())], **SETTINGS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["state"] == state
    for name, value in optimizer.state[parameter].items():
        loaded = other.state[other.param_groups[0]["params"][0]][name]
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded, value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state", ["full", "small"])
@pytest.mark.parametrize("form", ["dense", "lazy", "measured"])
def test_a_factor_is_the_gradient_multiplied_first(form, state, dtype):
    factor = torch.tensor(0.25)  # which bfloat16 holds too
    stepped = []
    for scaled_first in (True, False):
        parameter = torch.nn.Parameter(table().detach().to(dtype))
        optimizer = RowAdamW([parameter], state=state, lazy_share=0.5 if form == "measured" else 1, **SETTINGS)
        for step, rows in enumerate((40, 7, 30)):
            values = gradient(step, rows).to(dtype) * (factor.to(dtype) if scaled_first else 1)
            parameter.grad = sparse(range(rows), values)
            if form == "dense":
                parameter.grad = parameter.grad.to_dense()
            optimizer.step(gradient_factor=None if scaled_first else factor)
        stepped.append((parameter.detach(), *optimizer.state[parameter].values()))
    assert all(torch.equal(one, two) for one, two in zip(*stepped, strict=True))


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
    ("setting", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
        ({"lazy_share": 1.5}, "lazy_share is 1.5"),
        ({"state": "tiny"}, "state is 'tiny': choose from full, small"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        RowAdamW([table()], **setting)


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match=r"shape \(7,\)"):
        RowAdamW([torch.nn.Parameter(torch.zeros(7))])
