"""Rescoring the candidates' grid with the full Tucker core, in plain PyTorch.

Shapes: N tokens, H heads, r ranks, c candidates a side, h cores, k chosen slots.
"""

import torch
from torch import Tensor

from ultramem.ops.precision import without_autocast
from ultramem.ops.top_k import top_k


@without_autocast
def rescore(scores: Tensor, indices: Tensor, cores: Tensor, num_keys: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `ultramem.ops.rescore`; also returns the chosen positions ``(N, H, k)`` in the c x c grid."""
    num_candidates = scores.shape[-1]
    cores = cores.to(scores.dtype)
    row_NHrc, column_NHrc = scores.unbind(dim=2)
    left_NHrc = torch.einsum("nhac,hab->nhbc", row_NHrc, cores.sum(dim=1))
    grid_NHcc = left_NHrc.transpose(-1, -2) @ column_NHrc
    _, positions = top_k(grid_NHcc.flatten(-2), k)

    row_NHrk, column_NHrk = chosen_scores(scores, positions)
    values_NhHk = torch.einsum("nhak,hiab,nhbk->nihk", row_NHrk, cores, column_NHrk)
    row_key = indices[:, :, 0].gather(-1, positions // num_candidates)
    column_key = indices[:, :, 1].gather(-1, positions % num_candidates)
    return values_NhHk.contiguous().transpose(1, 2), row_key * num_keys + column_key, positions


def chosen_scores(scores: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The rank scores ``(N, H, r, k)`` of the row and of the column of every chosen slot."""
    num_candidates, ranks = scores.shape[-1], scores.shape[-2]
    row_positions = (positions // num_candidates)[:, :, None].expand(-1, -1, ranks, -1)
    column_positions = (positions % num_candidates)[:, :, None].expand(-1, -1, ranks, -1)
    return scores[:, :, 0].gather(-1, row_positions), scores[:, :, 1].gather(-1, column_positions)


@without_autocast
def rescore_backward(grad_values: Tensor, positions: Tensor, scores: Tensor, cores: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the candidates' rank scores and of the cores."""
    num_candidates, ranks = scores.shape[-1], scores.shape[-2]
    row_NHrk, column_NHrk = chosen_scores(scores, positions)
    weighted_core_NHrrk = torch.einsum("nhik,hiab->nhabk", grad_values, cores.to(scores.dtype))
    grad_row_NHrk = (weighted_core_NHrrk * column_NHrk[:, :, None]).sum(dim=3)
    grad_column_NHrk = (weighted_core_NHrrk * row_NHrk[:, :, :, None]).sum(dim=2)

    grad_scores = scores.new_zeros(scores.shape)
    row_positions = (positions // num_candidates)[:, :, None].expand(-1, -1, ranks, -1)
    column_positions = (positions % num_candidates)[:, :, None].expand(-1, -1, ranks, -1)
    grad_scores[:, :, 0].scatter_add_(-1, row_positions, grad_row_NHrk)
    grad_scores[:, :, 1].scatter_add_(-1, column_positions, grad_column_NHrk)

    grad_cores = torch.einsum("nhik,nhak,nhbk->hiab", grad_values, row_NHrk, column_NHrk)
    return grad_scores, grad_cores.to(cores.dtype).contiguous()
