"""One step of training as `ultramem.train` takes it, in parts that a benchmark may time or profile one by one.

bfloat16 autocast, blocks and loss compiled or not, backward, the norm by which to clip, both optimizers with the
scaling of their gradients. Random tokens, no dropout, no activation checkpointing, no waiting for the host.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ultramem import recipes
from ultramem.layers import Table
from ultramem.models import UltraMemConfig, UltraMemForCausalLM
from ultramem.optim import RowAdamW, clip_factor, clipped_step, gradient_norm, parameter_groups

PARTS = ("forward", "backward", "clip", "optimizers")


class Variant(NamedTuple):
    """A model, what its tables are kept in, and the sequences that it learns from."""

    recipe: str
    table_dtype: torch.dtype = torch.float32
    state: str = "full"
    lazy: bool = False
    length: int = 2048

    def config(self, **changes) -> UltraMemConfig:
        """The recipe's model without dropout, so that losses can be compared."""
        return replace(recipes.get(self.recipe).model, dropout=0.0, **changes)


class TrainingStep:
    """A model with its optimizers and a batch.

    Args:
        variant: what to train.
        config: its model, as `Variant.config` makes it.
        batch: sequences a step.
        compiled: by regions, as the trainer does it.
        device: where to compute.
    """

    def __init__(self, variant: Variant, config: UltraMemConfig, *, batch: int, compiled: bool, device: str):
        self.device = torch.device(device)
        self.model = _build(variant, config, self.device)
        self.optimizers = _optimizers(self.model, variant.state)
        self.tokens = torch.randint(config.vocab_size, (batch, variant.length), device=self.device)
        self.loss = torch.full((), torch.nan)
        if compiled:
            torch.compiler.reset()
            self.model.compile_regions()

    def parts(self) -> Iterator[str]:
        """Take the step; the name of each of `PARTS` comes after it."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss
        yield "forward"
        loss.backward()
        yield "backward"
        factor = clip_factor(gradient_norm(self.model.parameters()), 1.0)
        yield "clip"
        for optimizer in self.optimizers:
            clipped_step(optimizer, factor)
            optimizer.zero_grad()
        self.loss = loss.detach()
        yield "optimizers"

    def take(self) -> float:
        """Take the step; its loss, which a mistake of the measurement would make no number."""
        for _ in self.parts():
            pass
        loss = self.loss.item()
        if loss != loss:
            raise SystemExit(f"{self.model.config.memory}: a loss is not a number")
        return loss

    def milliseconds(self) -> dict[str, float]:
        """Take the step; what each part took on the device, and all of it."""
        moments = [_now(self.device), *(_now(self.device) for _ in self.parts())]
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        spent = {name: _between(*moments[number : number + 2]) for number, name in enumerate(PARTS)}
        return {"step": _between(moments[0], moments[-1]), **spent}


def _now(device: torch.device) -> torch.cuda.Event | float:
    if device.type != "cuda":
        return time.perf_counter() * 1e3
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, last: Any) -> float:
    return last - first if isinstance(last, float) else first.elapsed_time(last)


def _build(variant: Variant, config: UltraMemConfig, device: torch.device) -> UltraMemForCausalLM:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = UltraMemForCausalLM(config)
        for module in model.modules():
            if isinstance(module, Table):
                module.sparse = variant.lazy
                module.to(variant.table_dtype)
    model = model.to_empty(device=device).train()
    model.initialize_weights()
    return model


def _optimizers(model: nn.Module, state: str) -> list[torch.optim.Optimizer]:
    groups = parameter_groups(model, learning_rate=1e-4, weight_decay=0.1)
    trunk = [group for group in groups if group["name"] != "tables"]
    tables = [group for group in groups if group["name"] == "tables"]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(trunk, betas=(0.9, 0.95), fused=True)]
    return [*made, RowAdamW(tables, state=state)] if tables else made  # type: ignore[arg-type]
