import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ultramem.models.loss import next_token_loss


class CountingHead(nn.Linear):
    """Remembers the largest number of rows that it was given."""

    rows = 0

    def forward(self, hidden):
        self.rows = max(self.rows, hidden.shape[0])
        return super().forward(hidden)


@pytest.mark.parametrize("chunk_elements", [1, 13 * 4, 13 * 7, 10**6])
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(chunk_elements):
    torch.manual_seed(0)
    head = CountingHead(8, 13, bias=False, dtype=torch.float64)
    hidden = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(13, (3, 6))
    labels[0, :4] = -100

    loss, count = next_token_loss(head, hidden, labels, chunk_elements)
    gradients = torch.autograd.grad(loss, [hidden, head.weight])
    rows = head.rows
    logits = head(hidden[:, :-1].reshape(15, 8))
    expected = F.cross_entropy(logits.float(), labels[:, 1:].reshape(15))
    expected_gradients = torch.autograd.grad(expected, [hidden, head.weight])

    assert loss.dtype == torch.float32
    assert count == 12
    assert rows <= max(1, chunk_elements // 13)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-7)


def test_nothing_to_predict_costs_nothing():
    head, hidden = nn.Linear(8, 13), torch.randn(2, 6, 8, requires_grad=True)
    loss, count = next_token_loss(head, hidden, torch.full((2, 6), -100))
    loss.backward()
    assert (loss.item(), count.item(), hidden.grad.abs().max().item()) == (0, 0, 0)
    assert next_token_loss(head, hidden[:, :1], torch.zeros(2, 1, dtype=torch.int64))[1] == 0


def test_half_precision_logits_are_summed_in_float32():
    torch.manual_seed(0)
    head, hidden, labels = nn.Linear(16, 50), torch.randn(4, 40, 16), torch.randint(50, (4, 40))
    exact, _ = next_token_loss(head, hidden, labels)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = next_token_loss(head, hidden, labels, chunk_elements=50 * 7)
    assert low.dtype == torch.float32
    assert abs(low - exact) < 2e-3
