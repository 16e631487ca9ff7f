import pytest
import torch
from torch.nn import functional as F

from ultramem.layers.moe import MoE, grouped_linear


def oracle(moe: MoE, hidden: torch.Tensor, load_balance_coef: float, z_loss_coef: float):
    """One token after the other, one expert after the other."""
    tokens = hidden.flatten(0, -2)
    logits = tokens @ moe.router.weight.T
    probabilities = logits.softmax(-1)
    counts = torch.zeros(moe.num_experts, dtype=hidden.dtype)
    outputs = []
    for token, row in zip(tokens, probabilities, strict=True):
        chosen = row.argsort(descending=True)[: moe.num_experts_per_tok]
        output = torch.zeros_like(token)
        for expert in chosen.tolist():
            inner = F.silu(moe.gate_proj[expert] @ token) * (moe.up_proj[expert] @ token)
            output = output + row[expert] / row[chosen].sum() * (moe.down_proj[expert] @ inner)
            counts[expert] += 1
        if moe.shared_experts is not None:
            output = output + moe.shared_experts(token)
        outputs.append(output)
    balance = sum(
        count / counts.sum() * probabilities[:, expert].mean() for expert, count in enumerate(counts.tolist())
    )
    z_loss = sum(torch.log(row.exp().sum()) ** 2 for row in logits) / len(logits)
    loss = load_balance_coef * moe.num_experts * balance + z_loss_coef * z_loss
    return torch.stack(outputs).view_as(hidden), loss


@pytest.mark.parametrize(
    ("num_experts", "num_chosen", "num_shared"),
    [(4, 2, 0), (16, 3, 2), (5, 5, 0), (1, 1, 1), (64, 1, 0)],  # 64 experts for 14 tokens: most have none
)
def test_equals_a_loop_over_tokens_forward_and_every_gradient(num_experts, num_chosen, num_shared):
    torch.manual_seed(num_experts)
    moe = MoE(
        6,
        7,
        num_experts=num_experts,
        num_experts_per_tok=num_chosen,
        num_shared_experts=num_shared,
        load_balance_coef=0.3,
        z_loss_coef=0.2,
        dtype=torch.float64,
    )
    hidden = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(hidden)

    inputs = [hidden, *moe.parameters()]
    output, loss = moe(hidden)
    gradients = torch.autograd.grad((output * upstream).sum() + loss, inputs)
    expected_output, expected_loss = oracle(moe, hidden, 0.3, 0.2)
    expected_gradients = torch.autograd.grad((expected_output * upstream).sum() + expected_loss, inputs)

    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(loss, expected_loss.float())
    torch.testing.assert_close(gradients, expected_gradients)


def test_second_derivatives_are_those_of_the_loop():
    torch.manual_seed(0)
    moe = MoE(3, 4, num_experts=5, num_experts_per_tok=2, load_balance_coef=0.0, dtype=torch.float64)
    hidden = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)

    def curvature(output):
        (gradient,) = torch.autograd.grad(output.square().sum(), hidden, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), hidden)

    torch.testing.assert_close(curvature(moe(hidden).hidden_states), curvature(oracle(moe, hidden, 0.0, 0.0)[0]))


def test_functional_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    moe, hidden = MoE(3, 4, num_experts=5, num_experts_per_tok=2), torch.randn(7, 3, requires_grad=True)

    def total(hidden):
        return moe(hidden).hidden_states.square().sum()

    (expected,) = torch.autograd.grad(total(hidden), hidden)
    torch.testing.assert_close(torch.func.grad(total)(hidden), expected)


def test_no_token_is_dropped_when_all_choose_the_same_expert():
    torch.manual_seed(0)
    moe = MoE(4, 8, num_experts=8, num_experts_per_tok=1)
    hidden = torch.randn(1, 4).expand(50, 4)
    output = moe(hidden).hidden_states
    assert output.abs().sum(-1).min() > 0
    torch.testing.assert_close(output, output[:1].expand_as(output))


def test_balanced_routing_costs_exactly_the_coefficient():
    moe = MoE(4, 8, num_experts=4, num_experts_per_tok=1, load_balance_coef=0.01)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(4) * 50)
    torch.testing.assert_close(moe(torch.eye(4)).auxiliary_loss, torch.tensor(0.01))
    collapsed = moe(torch.eye(4)[:1].expand(4, 4)).auxiliary_loss
    torch.testing.assert_close(collapsed, torch.tensor(0.04))


def test_two_runs_are_the_same_bit_for_bit():
    torch.manual_seed(0)
    moe = MoE(16, 24, num_experts=8, num_experts_per_tok=3)
    hidden = torch.randn(40, 16, requires_grad=True)
    runs = [torch.autograd.grad(moe(hidden).hidden_states.square().sum(), [hidden, *moe.parameters()]) for _ in "ab"]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_autocast_routes_in_float32_and_keeps_the_input_dtype():
    torch.manual_seed(0)
    moe = MoE(16, 24, num_experts=8, num_experts_per_tok=2)
    hidden = torch.randn(40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = moe(hidden)
    high = moe(hidden)
    assert low.hidden_states.dtype == torch.float32
    torch.testing.assert_close(low.auxiliary_loss, high.auxiliary_loss, rtol=0, atol=0)
    assert (low.hidden_states - high.hidden_states).norm() < 0.01 * high.hidden_states.norm()


def test_grouped_linear_of_half_precision_has_the_error_of_half_precision():
    torch.manual_seed(0)
    inputs, weight, ends = torch.randn(20, 16), torch.randn(4, 8, 16), torch.tensor([3, 3, 15, 20])
    exact = grouped_linear(inputs.double(), weight.double(), ends)
    low = grouped_linear(inputs.bfloat16(), weight.bfloat16(), ends)
    plain = torch.cat(
        [
            F.linear(inputs[a:b].bfloat16(), weight[e].bfloat16())
            for e, (a, b) in enumerate([(0, 3), (3, 3), (3, 15), (15, 20)])
        ]
    )
    assert (low - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_impossible_choice_is_refused():
    with pytest.raises(ValueError, match=r"num_experts_per_tok=5 .* num_experts=4"):
        MoE(4, 8, num_experts=4, num_experts_per_tok=5)


@pytest.mark.gpu
@pytest.mark.parametrize("inner", [64, 60])  # 60: rows that grouped_mm does not take
def test_gpu_equals_cpu_within_twice_the_error_of_bfloat16(inner):
    torch.manual_seed(0)
    moe = MoE(64, inner, num_experts=16, num_experts_per_tok=3, num_shared_experts=1).bfloat16().double()
    hidden = torch.randn(200, 64).bfloat16().double()
    names = [name for name, _ in moe.named_parameters()]

    def run(device: str, dtype: torch.dtype):
        model = MoE(64, inner, num_experts=16, num_experts_per_tok=3, num_shared_experts=1, device=device, dtype=dtype)
        model.load_state_dict(moe.state_dict())
        tokens = hidden.to(device, dtype).requires_grad_()
        output = model(tokens).hidden_states
        gradients = torch.autograd.grad(output.square().sum(), [tokens, *model.parameters()])
        return [tensor.double().cpu() for tensor in (output, *gradients)]

    exact, plain, grouped = run("cpu", torch.float64), run("cpu", torch.bfloat16), run("cuda", torch.bfloat16)
    for name, reference, cpu, gpu in zip(["output", "input", *names], exact, plain, grouped, strict=True):
        assert (gpu - reference).norm() <= 2 * (cpu - reference).norm() + 1e-3 * reference.norm(), name
