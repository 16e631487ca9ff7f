"""The tables' optimizer: AdamW that takes a table's gradient as it arrives, dense or as touched rows."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT

from ultramem import ops
from ultramem.layers.tables import Table
from ultramem.ops.precision import accumulation_dtype

State = Literal["full", "small"]


class RowAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) for tables, whose gradients may be touched rows only.

    A dense gradient gets what ``torch.optim.AdamW(fused=True)`` does. A sparse one (``torch.sparse_coo`` with
    one sparse dimension; a row that is in it several times counts with its sum) gets lazy AdamW: only the touched rows
    are stepped, and the moments of the others neither decay nor move them. That is not the same mathematics: under
    dense AdamW a row goes on moving after its last gradient, and its second moment shrinks meanwhile. In exchange a
    step costs what its rows cost, not what the table costs. Bias correction counts the optimizer's steps either way.
    With ``lazy_share`` the share of touched rows, measured in every step of every table, decides: a sparse gradient of
    more rows is taken as a dense one, since hardly anything would be saved.

    What is kept of a table of R rows and width D_v, beside the table itself:

    - ``state="full"``: both moments of every element in float32, 8 bytes an element. AdamW as it is known.
    - ``state="small"``: the first moment in bfloat16, and one float32 second moment a row, the decayed mean of the
      row's squared gradients: 2 + 4 / D_v bytes an element, and less than half the time, because a step is all memory
      traffic. The elements of a row have one step size; Adam-mini (arXiv 2406.16793) shares the second moment of an
      embedding's row likewise. Right where tables fill the memory and rows differ more in how often they are read
      than in their columns. A first beta above 0.99 would lose small gradients in the bfloat16 moment.

    A bfloat16 table is rounded stochastically, so that updates far below its precision count on average; with the
    gradient that makes 2 + 2 + 8 bytes an element in full, 2 + 2 + 2 in small. A float16 table is rounded to nearest.

    Args:
        params: parameters or groups, as any optimizer takes; see `ultramem.optim.groups.parameter_groups`.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled; with sparse gradients only touched rows are decayed.
        state: "full" or "small", as above. It is saved with the state, and loading brings the saved one back.
        lazy_share: the largest share of a table's rows that a lazy step touches; 1: every sparse gradient is one.

    Raises:
        ValueError: a setting is out of its range, or a parameter is no matrix.

    Example:
        >>> table = torch.nn.Parameter(torch.randn(1000, 8))
        >>> optimizer = RowAdamW([table], lr=1e-2)
        >>> rows = torch.tensor([[3, 7]])
        >>> table.grad = torch.sparse_coo_tensor(rows, torch.randn(2, 8), table.shape)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        state: State = "full",
        lazy_share: float = 1.0,
    ):
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}: it cannot be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}: both must be in [0, 1)")
        if not 0 <= lazy_share <= 1:
            raise ValueError(f"lazy_share is {lazy_share}: it is a share, from 0 to 1")
        if state not in get_args(State):
            raise ValueError(f"state is {state!r}: choose from {', '.join(get_args(State))}")
        # `fused` is read by Optimizer.load_state_dict, which then keeps `step` on the parameter's device.
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "state": state, "fused": True}
        super().__init__(params, settings)
        self.lazy_share = lazy_share
        for parameter in self._parameters():
            if parameter.ndim != 2:
                raise ValueError(f"a parameter has shape {tuple(parameter.shape)}: only tables (rows, width) fit here")

    def __getstate__(self) -> dict[str, Any]:
        # A copy has what PyTorch knows of an optimizer, and this.
        return super().__getstate__() | {"lazy_share": self.lazy_share}

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None, *, gradient_factor: Tensor | None = None
    ) -> Tensor | None:
        """Take one step; parameters without a gradient are left alone.

        Args:
            closure: computes the loss again, as any optimizer takes.
            gradient_factor: scalar tensor, by which every gradient counts: `ultramem.optim.clip_factor`. The kernel
                multiplies as it reads, in float32, so that clipping takes no pass over a table's gradient. (PyTorch's,
                which steps float32 tables that have a dense gradient and the full state, leaves it multiplied.)

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for_torch = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                self._ensure_state(parameter, group["state"])
                dense = not _local(parameter.grad).is_sparse
                if dense and parameter.dtype == torch.float32 and group["state"] == "full":
                    for_torch.append(parameter)
                else:
                    self._step_rows(parameter, group, gradient_factor)
            self._step_by_torch(for_torch, group, gradient_factor)
        return loss

    def step_in_backward(self, table: Table) -> None:
        """From now on step a table inside each backward pass, as its gradient is summed up; the gradient is never held.

        It saves the gradient's memory; in time it costs or saves a fifth at most, by size and GPU (docs/kernels.md). It
        takes the learning rate that the parameter group has during the backward pass. Right only where nothing else
        needs the gradient: one backward pass a step, no clipping of this table, no other reader of it. `step` then
        passes the table over. A table made with ``sparse`` steps the rows that were read, whatever their share, any
        other all rows.

        Args:
            table: its weight is one of this optimizer's parameters.

        Raises:
            ValueError: it is not, or the table is divided among processes.

        Example:
            >>> optimizer = RowAdamW(table.parameters(), lr=1e-2)
            >>> optimizer.step_in_backward(table)
        """
        groups = [group for group in self.param_groups if any(table.weight is own for own in group["params"])]
        if not groups:
            raise ValueError(f"{table} is not among this optimizer's parameters")
        if type(table) is not Table:
            raise ValueError(f"{type(table).__name__} is divided among processes: only a whole table steps in backward")
        parameter, group = table.weight, groups[0]

        def row_step(grad_pooled: Tensor, slots: Tensor, weights: Tensor, placement: ops.Placement) -> Tensor:
            self._ensure_state(parameter, group["state"])
            state = self.state[parameter]
            state["step"] += 1
            return ops.lookup_step(
                grad_pooled,
                parameter.detach(),
                state["exp_avg"],
                state["exp_avg_sq"],
                slots,
                weights,
                placement=placement,
                step=state["step"],
                learning_rate=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                epsilon=group["eps"],
                weight_decay=group["weight_decay"],
                lazy=table.sparse,
            )

        table.row_step = row_step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer's, but that the moments keep their own precision, whatever the parameters have."""
        super().load_state_dict(state_dict)
        saved_numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(saved_numbers, self._parameters(), strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[parameter][name] = value.to(parameter.device)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _ensure_state(self, parameter: Tensor, form: State) -> None:
        state = self.state[parameter]
        if state:
            return
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        if form == "full":
            state["exp_avg"] = torch.zeros_like(parameter, dtype=wide)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=wide)
        else:
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = _zero_per_row(parameter, wide)

    def _step_rows(self, parameter: Tensor, group: dict, gradient_factor: Tensor | None) -> None:
        assert parameter.grad is not None
        rows, gradients = None, _local(parameter.grad)
        if gradients.is_sparse:
            gradients = gradients.coalesce()
            if self.lazy_share == 1 or _touched_share(parameter, gradients) <= self.lazy_share:
                rows, gradients = gradients.indices()[0], gradients.values()
            else:
                gradients = gradients.to_dense()
        state = self.state[parameter]
        state["step"] += 1
        ops.row_adam(
            _local(parameter),
            _local(state["exp_avg"]),
            _local(state["exp_avg_sq"]),
            rows,
            gradients,
            step=state["step"],
            learning_rate=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            epsilon=group["eps"],
            weight_decay=group["weight_decay"],
            gradient_factor=gradient_factor,
            mean_squares=_mean_squares(parameter, gradients, gradient_factor) if group["state"] == "small" else None,
        )

    def _step_by_torch(self, parameters: list[Tensor], group: dict, gradient_factor: Tensor | None) -> None:
        if not parameters:
            return
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            [_local(parameter) for parameter in parameters],
            [_local(parameter.grad) for parameter in parameters if parameter.grad is not None],
            [_local(state["exp_avg"]) for state in states],
            [_local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=None if gradient_factor is None else gradient_factor.float().reciprocal(),  # it divides
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _local(tensor: Tensor) -> Tensor:
    """What this process has of a table that several share: the optimizer steps that alone."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _touched_share(parameter: Tensor, gradients: Tensor) -> float:
    """Of all rows, those in a coalesced gradient; of a table divided by rows, in all its parts together."""
    counts = torch.tensor([gradients.values().shape[0], gradients.shape[0]], device=gradients.device)
    if isinstance(parameter, DTensor) and Shard(0) in parameter.placements:
        axis = parameter.placements.index(Shard(0))
        dist.all_reduce(counts, group=parameter.device_mesh.get_group(axis))
    touched, rows = counts.tolist()
    return touched / rows


def _mean_squares(parameter: Tensor, gradients: Tensor, gradient_factor: Tensor | None) -> Tensor | None:
    """Of whole rows ``(U, 1)``, where other processes have the other columns of them; else None."""
    if not isinstance(parameter, DTensor) or Shard(1) not in parameter.placements:
        return None
    axis = parameter.placements.index(Shard(1))
    squares = gradients.to(accumulation_dtype(parameter.dtype)).square().sum(dim=1, keepdim=True)
    if gradient_factor is not None:
        squares *= gradient_factor.to(squares.device, squares.dtype).square()
    dist.all_reduce(squares, group=parameter.device_mesh.get_group(axis))
    return squares / parameter.shape[1]


def _zero_per_row(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """``(R, 1)`` zeros, sharded by rows as the parameter is; a table sharded by columns has them on every process."""
    if not isinstance(parameter, DTensor):
        return torch.zeros_like(parameter[:, :1], dtype=dtype)
    local = parameter.to_local()[:, :1]
    placements = [placement if placement == Shard(0) else Replicate() for placement in parameter.placements]
    return DTensor.from_local(
        torch.zeros_like(local, dtype=dtype),
        parameter.device_mesh,
        placements,
        run_check=False,
        shape=torch.Size([parameter.shape[0], 1]),
        stride=(1, 1),
    )
