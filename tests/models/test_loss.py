import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ultramem.models.loss import NextTokenLoss


@pytest.mark.parametrize("chunk_elements", [1, 13 * 4, 13 * 7, 10**6])
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(chunk_elements):
    torch.manual_seed(0)
    head = nn.Linear(8, 13, bias=False, dtype=torch.float64)
    hidden = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(13, (3, 6))
    labels[0, :4] = -100
    next_token_loss = NextTokenLoss(chunk_elements)
    held = []
    next_token_loss.cross_entropy.register_forward_pre_hook(lambda _, inputs: held.append(inputs[0].numel()))

    loss, count = next_token_loss(head, hidden, labels)
    gradients = torch.autograd.grad(0.5 * loss, [hidden, head.weight])
    logits = head(hidden[:, :-1].reshape(15, 8))
    expected = F.cross_entropy(logits.float(), labels[:, 1:].reshape(15))
    expected_gradients = torch.autograd.grad(0.5 * expected, [hidden, head.weight])

    assert loss.dtype == torch.float32
    assert count == 12
    assert max(held) <= max(13, chunk_elements)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-7)


class Doubled(nn.Linear):
    """As an adapter does, it makes more of the weight that it shows."""

    def forward(self, hidden):
        return 2 * super().forward(hidden)


@pytest.mark.parametrize("head", [nn.Linear(8, 13), Doubled(8, 13, bias=False)], ids=["bias", "adapted"])
def test_a_head_that_is_more_than_its_weight_makes_the_logits_itself(head):
    torch.manual_seed(0)
    hidden, labels = torch.randn(2, 6, 8, requires_grad=True), torch.randint(13, (2, 6))
    loss, _ = NextTokenLoss()(head, hidden, labels)
    expected = F.cross_entropy(head(hidden[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    leaves = [hidden, *head.parameters()]
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen):
    torch.manual_seed(0)
    head, hidden, labels = nn.Linear(8, 13, bias=False), torch.randn(2, 6, 8), torch.randint(13, (2, 6))
    gradients = {}
    for name in ("", frozen):
        hidden, weight = (t.detach().requires_grad_() for t in (hidden, head.weight))
        (hidden if name == "hidden" else weight).requires_grad_(not name)
        head.weight = nn.Parameter(weight, requires_grad=weight.requires_grad)
        NextTokenLoss(13 * 4)(head, hidden, labels)[0].backward()
        gradients[name] = {"hidden": hidden.grad, "weight": head.weight.grad}
    assert gradients[frozen].pop(frozen) is None
    gradients[""].pop(frozen)
    torch.testing.assert_close(gradients[frozen], gradients[""])


def test_without_gradients_the_loss_is_the_same_and_none_are_computed():
    torch.manual_seed(0)
    head, hidden, labels = nn.Linear(8, 13, bias=False), torch.randn(2, 6, 8), torch.randint(13, (2, 6))
    next_token_loss, computed = NextTokenLoss(13 * 4), []
    expected, _ = next_token_loss(head, hidden, labels)
    next_token_loss.cross_entropy.register_forward_hook(lambda *call: computed.append(call[-1][1]))
    with torch.no_grad():
        loss, _ = next_token_loss(head, hidden, labels)
    assert loss.equal(expected.detach())
    assert not loss.requires_grad
    assert computed == [None] * 3


def test_nothing_to_predict_costs_nothing():
    head, hidden = nn.Linear(8, 13), torch.randn(2, 6, 8, requires_grad=True)
    loss, count = NextTokenLoss()(head, hidden, torch.full((2, 6), -100))
    loss.backward()
    assert (loss.item(), count.item(), hidden.grad.abs().max().item()) == (0, 0, 0)
    assert NextTokenLoss()(head, hidden[:, :1], torch.zeros(2, 1, dtype=torch.int64))[1] == 0


def test_half_precision_loses_no_more_than_half_precision_logits_do():
    """The error of loss and gradients against float64 is at most twice that of the plain composition, unchunked."""
    torch.manual_seed(0)
    head, hidden, labels = nn.Linear(16, 50, bias=False), torch.randn(4, 40, 16), torch.randint(50, (4, 40))

    def plain(head, hidden, labels):
        return F.cross_entropy(head(hidden[:, :-1]).flatten(0, 1).float(), labels[:, 1:].flatten())

    def loss_and_gradients(function, autocast, dtype):
        inputs = hidden.to(dtype).requires_grad_(), nn.Parameter(head.weight.detach().to(dtype))
        copy = nn.Linear(16, 50, bias=False, dtype=dtype)
        copy.weight = inputs[1]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = function(copy, inputs[0], labels)
        return [loss.detach().double(), *(grad.double() for grad in torch.autograd.grad(loss, inputs))]

    ours = loss_and_gradients(lambda *given: NextTokenLoss(50 * 7)(*given)[0], True, torch.float32)
    composed = loss_and_gradients(plain, True, torch.float32)
    exact = loss_and_gradients(plain, False, torch.float64)
    for low, reference, truth in zip(ours, composed, exact, strict=True):
        assert (low - truth).abs().max() <= 2 * (reference - truth).abs().max()
