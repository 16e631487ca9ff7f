"""The table: rows that memory layers read. It is a module of its own, handed to a layer's ``forward``."""

from math import isqrt

import torch
from torch import Tensor, nn

from ultramem import ops
from ultramem.layers.memory import Arriving
from ultramem.layers.stepped_lookup import RowStep, SteppedLookup


def placement(
    num_keys: int, *, expansion: int = 1, window: int = 1, first_row: int = 0, seed: int = 0
) -> ops.Placement:
    """Where the slots of a layer live, which reads a table of its own or a window of one that layers share.

    Args:
        num_keys: n: every layer adds n * n rows to the table.
        expansion: E, a square; sqrt(E) times as many logical keys a side.
        window: g: the layer reads the rows of g layers, so its keys grow by sqrt(g) (rounded down where that is no
            whole number: the window then is a few rows shorter).
        first_row: where they begin; behind the table's last row they go on at row 0.
        seed: of the slots' permutation.

    Raises:
        ValueError: E is not a square.

    Example:
        >>> placement(360, expansion=4, window=9, first_row=5 * 360**2).num_keys
        2160
    """
    root = isqrt(expansion)
    if root**2 != expansion:
        raise ValueError(f"expansion is {expansion}: it must be a square (1, 4, 9, 16, ...)")
    return ops.Placement(root * isqrt(window * num_keys**2), expansion, seed, first_row)


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
        self.row_step: RowStep | None = None  # set by `ultramem.optim.RowAdamW.step_in_backward`
        self.weight = nn.Parameter(torch.empty(num_rows, width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all rows anew."""
        nn.init.normal_(self.weight, std=self.std)

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        """Rows (dim 0) or columns (dim 1) from ``start`` on, in memory of their own."""
        return self.weight.detach().narrow(dim, start, length).clone(memory_format=torch.contiguous_format)

    def forward(self, slots: Tensor, values: Tensor, placement: ops.Placement, *, by_group: bool = True) -> Tensor:
        """Pools rows over all heads: slots ``(N, H, m)``, values ``(N, H, h, m)`` -> ``(N, E or 1, D_v)``."""
        slots, weights = slots.flatten(1), values.transpose(1, 2).flatten(2)
        if self.row_step is not None and torch.is_grad_enabled():
            return SteppedLookup.apply(self.weight, slots, weights, placement, by_group, self.row_step)
        return ops.lookup(self.weight, slots, weights, **placement._asdict(), by_group=by_group, sparse=self.sparse)

    def start(
        self, slots: Tensor, values: Tensor, placement: ops.Placement, *, by_group: bool = True
    ) -> Tensor | Arriving:
        """`forward`, whose pooled rows may still be on their way: `ultramem.layers.memory.arrived` awaits them."""
        return self(slots, values, placement, by_group=by_group)

    def dot(self, slots: Tensor, inputs: Tensor, placement: ops.Placement) -> Tensor:
        """Multiplies rows with their token's input: slots ``(N, H, m)``, inputs ``(N, D_v)`` -> ``(N, H, m)``."""
        products = ops.gather_dot(
            self.weight,
            slots.flatten(1),
            inputs,
            **placement._asdict(),
            sparse=self.sparse,
        )
        return products.view(slots.shape)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        rows, width = self.weight.shape
        return f"{rows}, {width}, std={self.std:.4g}"


class GatedTable(nn.Module):
    """Rows of two tables under one number: a pre-value, whose product with an input gates the row, and a value.

    UltraMemV2's pre-values and values; the down and up vectors of PEER's single-neuron experts.

    Args:
        num_rows: R.
        pre_width: D_p, of the pre-values.
        width: D_v, of the values.
        pre_std: of the initial pre-values.
        std: of the initial values.
        sparse: as of `Table`.
        table_class: of both.

    Example:
        >>> GatedTable(num_rows=9, pre_width=4, width=8, pre_std=0.1, std=0.1).pre_values.weight.shape
        torch.Size([9, 4])
    """

    def __init__(
        self,
        num_rows: int,
        *,
        pre_width: int,
        width: int,
        pre_std: float,
        std: float,
        sparse: bool = False,
        table_class: type[Table] = Table,
    ):
        super().__init__()
        self.pre_values = table_class(num_rows, pre_width, std=pre_std, sparse=sparse)
        self.values = table_class(num_rows, width, std=std, sparse=sparse)
