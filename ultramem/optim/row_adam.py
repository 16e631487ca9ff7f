"""The tables' optimizer: AdamW that takes a table's gradient as it arrives, dense or as touched rows."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT

from ultramem import ops


class RowAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) for tables, whose gradients may be touched rows only.

    A dense gradient gets exactly what ``torch.optim.AdamW(fused=True)`` does. A sparse one (``torch.sparse_coo`` with
    one sparse dimension; a row that is in it several times counts with its sum) gets lazy AdamW: only the touched rows
    are stepped, and the moments of the others neither decay nor move them. That is not the same mathematics: under
    dense AdamW a row goes on moving after its last gradient, and its second moment shrinks meanwhile. In exchange a
    step costs what its rows cost, not what the table costs. Bias correction counts the optimizer's steps either way.

    Args:
        params: parameters or groups, as any optimizer takes; see `ultramem.optim.groups.parameter_groups`.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled; with sparse gradients only touched rows are decayed.

    Raises:
        ValueError: a setting is out of its range.

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
    ):
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}: it cannot be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}: both must be in [0, 1)")
        # `fused` is read by Optimizer.load_state_dict, which then keeps `step` on the parameter's device.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step; parameters without a gradient are left alone.

        Args:
            closure: computes the loss again, as any optimizer takes.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                self._ensure_state(parameter)
                if parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                else:
                    dense.append(parameter)
            self._step_dense(dense, group)
        return loss

    def _ensure_state(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _step_rows(self, parameter: Tensor, group: dict) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        state = self.state[parameter]
        state["step"] += 1
        ops.row_adam(
            parameter,
            state["exp_avg"],
            state["exp_avg_sq"],
            gradient.indices()[0],
            gradient.values(),
            step=state["step"],
            learning_rate=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            epsilon=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def _step_dense(self, parameters: list[Tensor], group: dict) -> None:
        if not parameters:
            return
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
