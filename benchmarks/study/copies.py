"""The loss apart from what can be copied: a token that ends a trigram which the window holds already, and every other.

A model that has learnt to copy predicts the former from its context; what it has stored counts for the latter.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ultramem.models.modeling_ultramem import UltraMemForCausalLM


def repeats(tokens_BT: Tensor) -> Tensor:
    """Find the tokens that end a trigram which stands earlier in the same row.

    Args:
        tokens_BT: ``(B, T)`` int64, T at least 3, numbers below 2^21.

    Returns:
        ``(B, T)`` bool; of the first two tokens of a row always False.

    Example:
        >>> repeats(torch.tensor([[7, 8, 9, 7, 8, 9, 9]])).int().tolist()
        [[0, 0, 0, 0, 0, 1, 0]]
    """
    trigrams_BS = (tokens_BT[:, :-2] << 42) + (tokens_BT[:, 1:-1] << 21) + tokens_BT[:, 2:]
    # Equal ones lie beside each other, the earliest first.
    sorted_BS, places_BS = trigrams_BS.sort(dim=1, stable=True)
    seen_BS = torch.zeros_like(sorted_BS, dtype=torch.bool)
    seen_BS[:, 1:] = sorted_BS[:, 1:] == sorted_BS[:, :-1]
    repeats_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    repeats_BT[:, 2:] = torch.zeros_like(seen_BS).scatter(1, places_BS, seen_BS)
    return repeats_BT


@torch.no_grad()
def loss_of_new_tokens(
    model: UltraMemForCausalLM, batches: Iterable[Tensor], autocast: Callable[[], AbstractContextManager]
) -> tuple[float, float]:
    """Measure a model on the tokens that repeat nothing.

    Args:
        model: put into evaluation mode while it is measured.
        batches: ``(B, T + 1)`` int64 windows; moved to the model's device.
        autocast: context in which the model runs.

    Returns:
        The loss of these tokens, in nats; and their share of all that are predicted.
    """
    was_training = model.training
    model.eval()
    loss_sum, num_new, num_tokens = 0.0, 0, 0
    for windows in batches:
        windows = windows.to(model.device)
        labels = windows.masked_fill(repeats(windows), -100)
        new = int((labels[:, 1:] != -100).sum())
        with autocast():
            output = model(input_ids=windows, labels=labels, use_cache=False)
        loss_sum += float(output.cross_entropy) * new
        num_new += new
        num_tokens += windows[:, 1:].numel()
    model.train(was_training)
    return loss_sum / num_new, num_new / num_tokens


def losses_apart(loss: float, new_loss: float, new_share: float) -> dict[str, float | None]:
    """What a row says: the losses of both kinds of tokens, and the share of those that can be copied, if there are any.

    Args:
        loss: of all tokens, in nats.
        new_loss: of those that repeat nothing.
        new_share: how many these are.

    Example:
        >>> losses_apart(3.0, 4.0, 0.75)
        {'new_loss': 4.0, 'repeated_loss': 0.0, 'repeated_share': 0.25}
    """
    repeated_loss = (loss - new_share * new_loss) / (1 - new_share) if new_share < 1 else None
    return {"new_loss": new_loss, "repeated_loss": repeated_loss, "repeated_share": 1 - new_share}
