"""A dropless mixture of SwiGLU experts chosen by each token: the rival that sparse memory is measured against.

Shapes: N tokens, D hidden size, F inner width of an expert, E experts, K experts a token.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ultramem.layers.mlp import SwiGLU
from ultramem.ops.precision import autocast_off


class MoEOutput(NamedTuple):
    """What a mixture of experts gives back."""

    hidden_states: Tensor
    """`(..., D)`, the input's shape and dtype."""
    auxiliary_loss: Tensor
    """`()` float32: load-balance and z-loss, already multiplied by their coefficients."""


class MoE(nn.Module):
    """Token-choice mixture of experts: each token runs through its top-k experts, and none is dropped.

    The router's softmax is in float32, and the chosen probabilities are renormalised to a sum of 1. Fine-grained
    experts are many experts with a small `intermediate_size`; shared experts, which every token runs through, are one
    SwiGLU of their joint width (DeepSeekMoE, arXiv 2401.06066).

    The auxiliary loss is `load_balance_coef * E * sum_e f_e p_e` (Switch Transformers, arXiv 2101.03961, eq. 4), with
    f_e the share of the routed assignments and p_e the mean probability of expert e, so that perfect balance costs
    exactly the coefficient; plus `z_loss_coef * mean(logsumexp(logits)^2)` (ST-MoE, arXiv 2202.08906, eq. 5).

    Args:
        hidden_size: width D of the input and of the output.
        intermediate_size: inner width F of one expert.
        num_experts: number E of routed experts.
        num_experts_per_tok: number K of experts that a token runs through.
        num_shared_experts: experts that every token runs through besides.
        load_balance_coef: weight of the load-balance loss.
        z_loss_coef: weight of the router's z-loss.
        device: where the parameters are made.
        dtype: dtype of the parameters.

    Raises:
        ValueError: if `num_experts_per_tok` is not between 1 and `num_experts`.

    Example:
        >>> output = MoE(8, 16, num_experts=4, num_experts_per_tok=2)(torch.randn(2, 5, 8))
        >>> output.hidden_states.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        num_experts: int,
        num_experts_per_tok: int,
        num_shared_experts: int = 0,
        load_balance_coef: float = 0.01,
        z_loss_coef: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if not 1 <= num_experts_per_tok <= num_experts:
            raise ValueError(
                f"num_experts_per_tok={num_experts_per_tok} must be between 1 and num_experts={num_experts}"
            )
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.load_balance_coef = load_balance_coef
        self.z_loss_coef = z_loss_coef
        options = {"device": device, "dtype": dtype}
        self.router = nn.Linear(hidden_size, num_experts, bias=False, **options)
        self.gate_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size, **options))
        self.up_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size, **options))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size, **options))
        self.shared_experts = (
            SwiGLU(hidden_size, num_shared_experts * intermediate_size, **options) if num_shared_experts else None
        )
        self.reset_parameters()

    def reset_parameters(self, output_gain: float = 1.0) -> None:
        """Unit gain, inputs of unit variance given; `output_gain` scales the last matrices."""
        for weight in (self.router.weight, self.gate_proj, self.up_proj):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        nn.init.normal_(self.down_proj, std=output_gain * self.down_proj.shape[-1] ** -0.5)
        if self.shared_experts is not None:
            self.shared_experts.reset_parameters(output_gain)

    def forward(self, hidden_states: Tensor) -> MoEOutput:
        """Maps `(..., D)` to a `MoEOutput`."""
        hidden_ND = hidden_states.flatten(0, -2)
        weights_NK, experts_NK, auxiliary_loss = self._route(hidden_ND)
        output_ND = self._run_experts(hidden_ND, weights_NK, experts_NK)
        if self.shared_experts is not None:
            output_ND = output_ND + self.shared_experts(hidden_ND)
        return MoEOutput(output_ND.view_as(hidden_states), auxiliary_loss)

    def _route(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Chooses the experts: their weights (N, K), their numbers (N, K) and the auxiliary loss."""
        # Autocast would round the logits to half precision, where close experts tie.
        with autocast_off(hidden_ND.device):
            router_dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
            logits_NE = F.linear(hidden_ND.to(router_dtype), self.router.weight.to(router_dtype))
        probabilities_NE = logits_NE.softmax(dim=-1)
        weights_NK, experts_NK = probabilities_NE.topk(self.num_experts_per_tok, dim=-1)
        weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)

        share_E = F.one_hot(experts_NK, self.num_experts).to(router_dtype).mean(dim=(0, 1))
        balance = self.num_experts * (share_E * probabilities_NE.mean(dim=0)).sum()
        z_loss = logits_NE.logsumexp(dim=-1).square().mean()
        auxiliary_loss = self.load_balance_coef * balance + self.z_loss_coef * z_loss
        return weights_NK, experts_NK, auxiliary_loss.float()

    def _run_experts(self, hidden_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor) -> Tensor:
        """Weighted sum (N, D) of each token's experts, computed on the assignments sorted by expert."""
        num_tokens, num_chosen = experts_NK.shape
        # A GPU sorts some bits at a time: 32 take half the passes of 64.
        sorted_experts, order = experts_NK.flatten().to(torch.int32).sort(stable=True)
        inverse = order.to(torch.int32).argsort()
        experts_E = torch.arange(self.num_experts, device=order.device, dtype=torch.int32)
        ends_E = torch.searchsorted(sorted_experts, experts_E, right=True)
        copies = hidden_ND.unsqueeze(1).expand(-1, num_chosen, -1).flatten(0, 1)
        grouped = _Permute.apply(copies, order, inverse)
        gate = grouped_linear(grouped, self.gate_proj, ends_E)
        up = grouped_linear(grouped, self.up_proj, ends_E)
        outputs = grouped_linear(F.silu(gate) * up, self.down_proj, ends_E)
        outputs_NKD = _Permute.apply(outputs, inverse, order).view(num_tokens, num_chosen, -1)
        return (outputs_NKD * weights_NK.to(outputs.dtype).unsqueeze(-1)).sum(dim=1).to(hidden_ND.dtype)


class _Permute(torch.autograd.Function):
    """Rows in another order: `rows[order]`, for an order and its inverse.

    The gradient is read in the inverse order, where that of an indexing would be added row by row, for indices may
    repeat: with float atomics, or, deterministically, after a sort.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return rows.index_select(0, order)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        _, order, inverse = inputs
        ctx.save_for_backward(order, inverse)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, order), None, None


def grouped_linear(inputs: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiplies each group of rows with the matrix of its own expert.

    On a GPU in bfloat16 this is one `torch.nn.functional.grouped_mm`; elsewhere a loop over the groups.

    Args:
        inputs: `(M, in)`, rows sorted by expert.
        weight: `(E, out, in)`.
        ends: `(E,)` int64, the row at which each expert's group ends; an empty group ends where the last one does.

    Returns:
        `(M, out)`: row i times the transposed matrix of its expert.

    Example:
        >>> grouped_linear(torch.ones(3, 2), torch.ones(2, 5, 2), torch.tensor([1, 3])).shape
        torch.Size([3, 5])
    """
    device = inputs.device.type
    if torch.is_autocast_enabled(device):  # autocast does not know grouped_mm
        dtype = torch.get_autocast_dtype(device)
        inputs, weight = inputs.to(dtype), weight.to(dtype)
    rows_aligned = weight.shape[1] % 8 == 0 and weight.shape[2] % 8 == 0  # grouped_mm wants rows of 16 bytes
    if device == "cuda" and inputs.dtype == weight.dtype == torch.bfloat16 and rows_aligned:
        return F.grouped_mm(inputs, weight.transpose(1, 2), offs=ends.to(torch.int32))
    # Not tensor_split: each of its parts has a gradient as large as all of them.
    groups = inputs.split(ends.diff(prepend=ends.new_zeros(1)).tolist())
    return torch.cat([F.linear(group, matrix) for group, matrix in zip(groups, weight.unbind(), strict=True)])
