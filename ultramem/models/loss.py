"""Cross-entropy of the next tokens that never holds the logits of a whole batch."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -100
# Logits of one chunk: 256 MiB in bfloat16, and over a thousand rows, a full matrix product, at a vocabulary of 100,000.
CHUNK_ELEMENTS = 2**27


class NextTokenLoss(nn.Module):
    """Mean cross-entropy of each position's successor, in float32, chunk by chunk.

    The gradients of a chunk are computed while its logits are there: logits are computed once, and none are kept.

    Args:
        chunk_elements: how many logits are held at a time.

    Example:
        >>> loss, count = NextTokenLoss()(nn.Linear(8, 11, bias=False), torch.randn(2, 5, 8), torch.ones(2, 5).long())
        >>> count
        tensor(8)
    """

    def __init__(self, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        super().__init__()
        self.chunk_elements = chunk_elements
        self.cross_entropy = CrossEntropy()

    def forward(self, lm_head: nn.Module, hidden_states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over the predicted tokens, `()` float32 (0 where there are none), and their number, `()` int64.

        Args:
            lm_head: the output layer, D to V logits. What is not a plain linear layer without bias, as an adapted one,
                is asked for all logits at once.
            hidden_states: `(B, T, D)`.
            labels: `(B, T)` int64, the input's own tokens, shifted here; -100 is not predicted.
        """
        # The last position has no successor: shifted labels cost less than hidden states copied without it.
        targets_N = F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
        hidden_ND = hidden_states.flatten(0, 1)
        if type(lm_head) is nn.Linear and lm_head.bias is None:
            rows, weight_VD = max(1, self.chunk_elements // lm_head.out_features), lm_head.weight
            if not torch.is_grad_enabled():
                hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
            total = _ChunkedLoss.apply(hidden_ND, weight_VD, targets_N, self.cross_entropy, rows)
        else:  # only it knows what makes its logits
            logits_NV = lm_head(hidden_ND).float()
            total = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
        count = (targets_N != IGNORED).sum()
        return total / count.clamp(min=1), count


class CrossEntropy(nn.Module):
    """The cross-entropy of a chunk's logits: most of a loss's memory traffic, and what is worth compiling of it."""

    def forward(self, logits_NV: Tensor, targets_N: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """The sum over the rows whose target is not ignored, `()` float32, and its gradient in the logits' dtype."""
        log_probabilities_NV = logits_NV.log_softmax(dim=1, dtype=torch.float32)
        predicted_N1, targets_N1 = (targets_N != IGNORED)[:, None], targets_N.clamp(min=0)[:, None]
        total = -log_probabilities_NV.gather(1, targets_N1).masked_fill(~predicted_N1, 0).sum()
        if not gradient:
            return total, None
        probabilities_NV = log_probabilities_NV.exp_()
        probabilities_NV.scatter_add_(1, targets_N1, torch.full_like(targets_N1, -1, dtype=torch.float32))
        return total, probabilities_NV.mul_(predicted_N1).to(logits_NV.dtype)


class _ChunkedLoss(torch.autograd.Function):
    """Sums the chunks' losses; the forward pass leaves nothing for the backward pass to do but to scale gradients."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, cross_entropy: CrossEntropy, rows: int):
        """`()` float32."""
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        low_weight_VD = weight_VD.to(dtype)
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.empty_like(hidden_ND) if for_hidden else None
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if for_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(hidden_ND), rows):
            chunk = slice(start, start + rows)
            low_hidden_ND = hidden_ND[chunk].to(dtype)
            logits_NV = F.linear(low_hidden_ND, low_weight_VD)
            loss, grad_logits_NV = cross_entropy(logits_NV, targets_N[chunk], gradient=for_hidden or for_weight)
            total += loss
            if grad_hidden_ND is not None:
                grad_hidden_ND[chunk] = grad_logits_NV @ low_weight_VD
            if grad_weight_VD is not None:
                grad_weight_VD += grad_logits_NV.mT @ low_hidden_ND
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total):
        """The gradients that the forward pass computed, in proportion."""
        grads = (None if grad is None else grad * grad_total for grad in ctx.saved_tensors)
        return *grads, None, None, None
