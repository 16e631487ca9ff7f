"""The table: rows that memory layers read. It is a module of its own, handed to a layer's ``forward``."""

import torch
from torch import Tensor, nn

from ultramem import ops


class Table(nn.Module):
    """``num_rows`` values of ``width`` numbers, initialised ``N(0, std**2)``.

    Args:
        num_rows: R.
        width: D_v.
        std: of the initial values; `ultramem.layers.ultramem.value_std` and `ultramem.layers.pkm.value_std` give it.
        sparse: as in ``torch.nn.Embedding``: the gradient is a sparse tensor of the touched rows.

    Example:
        >>> Table(num_rows=9, width=8, std=0.1).weight.shape
        torch.Size([9, 8])
    """

    def __init__(
        self,
        num_rows: int,
        width: int,
        *,
        std: float,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.std = std
        self.sparse = sparse
        self.weight = nn.Parameter(torch.empty(num_rows, width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all rows anew."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, slots: Tensor, values: Tensor, *, num_keys: int, expansion: int, seed: int) -> Tensor:
        """Pools rows over all heads: slots ``(N, H, m)``, values ``(N, H, h, m)`` -> ``(N, E, D_v)``."""
        return ops.lookup(
            self.weight,
            slots.flatten(1),
            values.transpose(1, 2).flatten(2),
            num_keys=num_keys,
            expansion=expansion,
            seed=seed,
            sparse=self.sparse,
        )

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        rows, width = self.weight.shape
        return f"{rows}, {width}, std={self.std:.4g}"
