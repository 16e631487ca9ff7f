"""What an UltraMem layer launches for one token a sequence: in decode small launches are most of its time."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ultramem import Table, UltraMemLayer
from ultramem.layers.query import ConvState


class Launches(TorchDispatchMode):
    """The names of all operations but views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        if not function.is_view and function is not torch.ops.aten._unsafe_view.default:
            self.names.append(function.name().split(".")[0])
        return function(*arguments, **(settings or {}))


@torch.no_grad()
def test_every_launch_of_a_step_is_a_step_of_the_method():
    torch.manual_seed(0)
    layer = UltraMemLayer(64, num_keys=16, key_size=32, value_size=32, top_k=4).bfloat16()
    table = Table(256, 32, std=0.1, dtype=torch.bfloat16)
    hidden, state = torch.randn(8, 1, 64).bfloat16(), ConvState(torch.zeros(8, 64, 3).bfloat16().transpose(1, 2))
    layer(hidden, table, state)  # keeps what follows from the weights
    with Launches() as launches:
        layer(hidden, table, state)
    names = launches.names
    projection, filtering = names.index("aten::mm"), names.index("ultramem::select_keys")
    norm = names[projection + 1 : filtering]  # on a GPU one operation
    assert norm.count("aten::rsqrt") == 1
    assert norm.count("aten::mul") == 1
    assert names[: projection + 1] == ["ultramem::causal_conv_step", "aten::mm"]
    assert names[filtering:] == ["ultramem::select_keys", "ultramem::rescore", "ultramem::lookup", "aten::mm"]
