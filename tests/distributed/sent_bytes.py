"""Counts the bytes that this process sends in collectives."""

import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


class SentBytes(TorchDispatchMode):
    """Bytes sent to other processes by the collectives of a block, as rings send them."""

    def __init__(self):
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, name = function.name().split("::")
        if namespace in ("c10d", "_c10d_functional"):
            self.total += sent(name.split(".")[0], args)
        return function(*args, **(kwargs or {}))


def sent(name, args):
    if name == "alltoall_base_":  # output, input, group, lengths to receive, lengths to send
        _, tensor, group, _, lengths = args[:5]
        rank = dist.ProcessGroup.unbox(group).rank()
        return tensor.nbytes * (1 - lengths[rank] / sum(lengths)) if tensor.nbytes else 0
    if name == "_allgather_base_":  # output, input, group
        return args[1].nbytes * (size_of(args[2]) - 1)
    if name == "_reduce_scatter_base_":
        return args[0].nbytes * (size_of(args[2]) - 1)
    if name == "allreduce_":  # tensors, group
        size = size_of(args[1])
        return sum(2 * tensor.nbytes * (size - 1) / size for tensor in args[0])
    raise AssertionError(f"what does {name} send?")


def size_of(group):
    return dist.ProcessGroup.unbox(group).size()
