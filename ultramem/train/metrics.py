"""Validation: the loss, and the health of each memory, measured on the way from which rows were read."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ultramem.distributed.agreement import sum_over_ranks
from ultramem.layers.memory import MemoryLayer, MemoryOutput
from ultramem.layers.retrieval import TuckerRetrieval
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.ops import physical_rows


class MemoryHealth:
    """How well one memory layer uses its table, over all tokens that it is shown.

    Of a table that layers share, the layer's own window counts.

    Args:
        layer: the memory layer.

    Example:
        >>> health = MemoryHealth(layer)
        >>> health.update(layer(torch.randn(2, 9, 16), table))
        >>> 0 < health.compute()["rows_read"] <= 1
        True
    """

    def __init__(self, layer: MemoryLayer):
        self.layer = layer
        device = layer.query.proj.weight.device
        num_rows = layer.placement.num_keys**2 // layer.placement.expansion
        self.reads_R = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.top_score_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.num_choices = 0
        self.output_square_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.num_outputs = 0

    def update(self, output: MemoryOutput) -> None:
        """Count what the layer read."""
        rows, _ = physical_rows(output.slots, *self.layer.placement._replace(first_row=0))
        self.reads_R += torch.bincount(rows.flatten(), minlength=self.reads_R.numel())
        top_scores = output.scores[..., 0]
        self.top_score_sum += top_scores.sum(dtype=torch.float64)
        self.num_choices += top_scores.numel()
        self.output_square_sum += output.hidden_states.double().square().sum()
        self.num_outputs += output.hidden_states.numel()

    def gather(self) -> None:
        """Count what all processes read."""
        sum_over_ranks(self.reads_R)
        sums = torch.stack([self.top_score_sum, self.output_square_sum])
        self.top_score_sum, self.output_square_sum = sum_over_ranks(sums).unbind()
        counts = sum_over_ranks(torch.tensor([self.num_choices, self.num_outputs]))
        self.num_choices, self.num_outputs = counts.tolist()

    @torch.no_grad()
    def compute(self) -> dict[str, Any]:
        """Return the measurements.

        Returns:
            "rows_read": share of the layer's rows that were read; "dead_rows": how many were not;
            "kl_from_uniform": of the reads over the rows, in nats (0: all rows alike, log R: one row only);
            "top_percent_share": share of the reads that went to the most read hundredth of the rows;
            "top_score": mean score of a head's best slot; "output_std": root mean square of the layer's output;
            "singular_values": of each head's core, descending, where the layer has one.
        """
        reads_R = self.reads_R.double()
        num_rows = reads_R.numel()
        share_R = reads_R / reads_R.sum()
        dead_rows = int((self.reads_R == 0).sum())
        busiest = share_R.topk(math.ceil(num_rows / 100)).values
        health: dict[str, Any] = {
            "rows_read": 1 - dead_rows / num_rows,
            "dead_rows": dead_rows,
            "kl_from_uniform": float(torch.special.xlogy(share_R, share_R * num_rows).sum()),
            "top_percent_share": float(busiest.sum()),
            "top_score": float(self.top_score_sum) / self.num_choices,
            "output_std": math.sqrt(float(self.output_square_sum) / self.num_outputs),
        }
        if isinstance(self.layer.retrieval, TuckerRetrieval):
            health["singular_values"] = self.layer.retrieval.singular_values().tolist()
        return health


@torch.no_grad()
def validate(
    model: UltraMemForCausalLM,
    batches: Iterable[Tensor],
    *,
    tokens_per_byte: float,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, Any]:
    """Measure a model on held-out text, of which each process may have a part.

    Args:
        model: put into evaluation mode while it is measured.
        batches: ``(B, T + 1)`` int64 windows, B and T alike in all or not; moved to the model's device.
        tokens_per_byte: of the text that the tokens stand for.
        autocast: context in which the model runs.

    Returns:
        "validation_loss" in nats a token, without auxiliary losses; "perplexity"; "bits_per_byte"; and, where the model
        has memories, "memory" with the `MemoryHealth` of each, by its unit ("3:7").
    """
    was_training = model.training
    model.eval()
    decoder = model.model
    healths = [MemoryHealth(layer) for layer in decoder.memory_layers]  # type: ignore[arg-type]  # a ModuleList forgets
    loss_sum, num_tokens = 0.0, 0
    for windows in batches:
        windows = windows.to(model.device, non_blocking=True)
        with autocast():
            output = model(input_ids=windows, labels=windows, output_memory=bool(healths), use_cache=False)
        predicted = windows.shape[0] * (windows.shape[1] - 1)
        loss_sum += float(output.cross_entropy) * predicted
        num_tokens += predicted
        for health, memory in zip(healths, output.memory or (), strict=True):
            health.update(memory)
    model.train(was_training)
    for health in healths:
        health.gather()
    loss_sum, num_tokens = sum_over_ranks(torch.tensor([loss_sum, num_tokens], dtype=torch.float64)).tolist()
    loss = loss_sum / num_tokens
    result: dict[str, Any] = {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # beyond, no float holds it
        "bits_per_byte": loss / math.log(2) * tokens_per_byte,
    }
    if healths:
        units = model.config.memory_units
        result["memory"] = {unit: health.compute() for unit, health in zip(units, healths, strict=True)}
    return result
