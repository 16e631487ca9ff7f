"""Products of chosen rows with their token's input, in plain PyTorch.

Nothing of size tokens x slots x width is made: a product is what the weight of a read has as its gradient in an
embedding bag whose pooled gradient is the input, and the gradients are bags over the rows and over the inputs.
"""

import torch
from torch import Tensor

from ultramem.ops.lookup import reference as lookup_reference
from ultramem.ops.lookup.permutation import Placement, physical_rows
from ultramem.ops.precision import accumulation_dtype

_SUM = 0  # the number of mode="sum" in the embedding bag's kernels


def gather_dot(table: Tensor, slots: Tensor, inputs: Tensor, placement: Placement) -> Tensor:
    """See `ultramem.ops.gather_dot`."""
    num_tokens, num_slots = slots.shape
    dtype = accumulation_dtype(table.dtype)
    rows, _ = physical_rows(slots, *placement, table.shape[0])
    tokens = torch.arange(num_tokens, device=slots.device)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        inputs.to(dtype),
        table.to(dtype),
        rows.flatten(),
        tokens * num_slots,
        tokens.repeat_interleave(num_slots),
        _SUM,
    )
    return products.view(slots.shape)


def gather_dot_backward(
    grad_products: Tensor, table: Tensor, slots: Tensor, inputs: Tensor, placement: Placement
) -> tuple[Tensor, Tensor]:
    """The dense gradient of the table ``(R, D_p)`` and that of the inputs ``(N, D_p)``."""
    weights = grad_products[:, None]
    grad_table = lookup_reference.table_gradient(inputs[:, None], table, slots, weights, placement, 1)
    return grad_table, _input_gradients(weights, table, slots, inputs, placement)


def gather_dot_backward_rows(
    grad_products: Tensor, table: Tensor, slots: Tensor, inputs: Tensor, placement: Placement
) -> tuple[Tensor, Tensor, Tensor]:
    """The touched rows ``(U,)`` ascending, their gradients ``(U, D_p)``, and the gradient of the inputs."""
    weights = grad_products[:, None]
    rows, grad_rows = lookup_reference.row_gradients(inputs[:, None], table, slots, weights, placement, 1)
    return rows, grad_rows, _input_gradients(weights, table, slots, inputs, placement)


def _input_gradients(weights: Tensor, table: Tensor, slots: Tensor, inputs: Tensor, placement: Placement) -> Tensor:
    return lookup_reference.lookup(table, slots, weights, placement, 1)[:, 0].to(inputs.dtype)
