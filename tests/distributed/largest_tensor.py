"""Watches what is in memory: the largest tensor that operations return."""

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that an operation of a block wrote or read into; of a DTensor the local part's."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it takes itself apart, into operations that come here again
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not without_memory(tensor):
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return result


def without_memory(tensor):
    """Shapes alone, as DTensors ask for; the rows of a sparse tensor come by themselves."""
    return tensor.is_meta or isinstance(tensor, FakeTensor) or tensor.is_sparse
