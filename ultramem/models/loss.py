"""Cross-entropy of the next tokens that never holds the logits of a whole batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100
# Logits of one chunk: 128 MiB in float32, still hundreds of rows, a full matrix product, at a vocabulary of 100,000.
CHUNK_ELEMENTS = 2**25


def next_token_loss(
    lm_head: nn.Linear, hidden_states: Tensor, labels: Tensor, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each position's successor, in float32, chunk by chunk.

    The logits of a chunk live only while its loss is computed; the backward pass computes them again.

    Args:
        lm_head: the output layer, D to V logits.
        hidden_states: `(B, T, D)`.
        labels: `(B, T)` int64, the input's own tokens, shifted here; -100 is not predicted.
        chunk_elements: how many logits are held at a time.

    Returns:
        The mean over the predicted tokens, `()` float32 (0 where there are none), and their number, `()` int64.

    Example:
        >>> loss, count = next_token_loss(nn.Linear(8, 11), torch.randn(2, 5, 8), torch.randint(11, (2, 5)))
        >>> count
        tensor(8)
    """
    hidden_ND = hidden_states[:, :-1].flatten(0, 1)
    targets_N = labels[:, 1:].flatten()
    rows = max(1, chunk_elements // lm_head.out_features)
    if len(targets_N) <= rows:
        total = _summed_loss(lm_head, hidden_ND, targets_N)
    else:
        chunks = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        losses = [checkpoint(_summed_loss, lm_head, *chunk, use_reentrant=False) for chunk in chunks]
        total = torch.stack(losses).sum()
    count = (targets_N != IGNORED).sum()
    return total / count.clamp(min=1), count


def _summed_loss(lm_head: nn.Linear, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(lm_head(hidden_ND).float(), targets_N, ignore_index=IGNORED, reduction="sum")
