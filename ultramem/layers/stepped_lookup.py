"""A lookup whose backward pass steps the table, instead of making a gradient of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ultramem import ops

RowStep = Callable[[Tensor, Tensor, Tensor, ops.Placement], Tensor]
"""Steps a table, given the gradient ``(N, groups, D_v)`` of what was pooled, the slots ``(N, K)``, the weights
``(N, h, K)`` and the slots' placement; returns the weights' gradient."""


class SteppedLookup(torch.autograd.Function):
    """`ultramem.ops.lookup`, whose backward pass calls a `RowStep` in the place of the table's gradient.

    A table that changed between forward and backward, as one that two layers read does, is autograd's own error. A
    compiler leaves it out of its graphs, because a step changes an optimizer: ``fullgraph=True`` is refused.
    """

    @staticmethod
    def forward(ctx, table, slots, weights, placement: ops.Placement, by_group: bool, row_step: RowStep):
        """Pools as `ultramem.ops.lookup`."""
        ctx.save_for_backward(table, slots, weights)
        ctx.placement, ctx.row_step = placement, row_step
        return ops.lookup(table, slots, weights, **placement._asdict(), by_group=by_group)

    @staticmethod
    def backward(ctx, grad_pooled):
        """The weights' gradient; the table is stepped."""
        _, slots, weights = ctx.saved_tensors
        grad_weights = ctx.row_step(grad_pooled.contiguous(), slots, weights, ctx.placement)
        return None, None, grad_weights, None, None, None
