"""The dense feed-forward branches: a gated one (SwiGLU) and the plain two-matrix one (GELU)."""

from torch import Tensor, nn
from torch.nn import functional as F


class SwiGLU(nn.Module):
    """Gated feed-forward network, `down(silu(gate(x)) * up(x))`, without biases.

    Source: Shazeer 2020, "GLU Variants Improve Transformer" (arXiv 2002.05202); the parameter names are Llama's.

    Args:
        hidden_size: width D of the input and of the output.
        intermediate_size: width of the gate and of the up projection.
        device: where the parameters are made.
        dtype: dtype of the parameters.

    Example:
        >>> SwiGLU(8, 32)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, hidden_size: int, intermediate_size: int, *, device=None, dtype=None) -> None:
        super().__init__()
        options = {"bias": False, "device": device, "dtype": dtype}
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, **options)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, **options)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, **options)
        self.reset_parameters()

    def reset_parameters(self, output_gain: float = 1.0) -> None:
        """Unit gain, inputs of unit variance given; `output_gain` scales the last matrix."""
        for projection in (self.gate_proj, self.up_proj):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        nn.init.normal_(self.down_proj.weight, std=output_gain * self.down_proj.in_features**-0.5)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `(..., D)` to `(..., D)`."""
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class GELUMLP(nn.Module):
    """Two-matrix feed-forward network, `down(gelu(up(x)))`, without biases: the one of UltraMem's experiments.

    Args:
        hidden_size: width D of the input and of the output.
        intermediate_size: width of the hidden layer.
        device: where the parameters are made.
        dtype: dtype of the parameters.

    Example:
        >>> GELUMLP(8, 32)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, hidden_size: int, intermediate_size: int, *, device=None, dtype=None) -> None:
        super().__init__()
        options = {"bias": False, "device": device, "dtype": dtype}
        self.up_proj = nn.Linear(hidden_size, intermediate_size, **options)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, **options)
        self.reset_parameters()

    def reset_parameters(self, output_gain: float = 1.0) -> None:
        """Unit gain, inputs of unit variance given; `output_gain` scales the last matrix."""
        nn.init.normal_(self.up_proj.weight, std=self.up_proj.in_features**-0.5)
        nn.init.normal_(self.down_proj.weight, std=output_gain * self.down_proj.in_features**-0.5)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `(..., D)` to `(..., D)`."""
        return self.down_proj(F.gelu(self.up_proj(hidden_states)))
