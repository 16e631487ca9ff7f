"""The process group of a run, where torchrun or another launcher says that there are several processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


@contextmanager
def process_group(device: torch.device, timeout_seconds: float) -> Iterator[torch.device]:
    """Meet the other processes that the launcher started, and part at the end.

    A process that was started alone, or whose caller has met the others already, stays as it is.

    Args:
        device: a CPU, or CUDA: then a process takes the GPU of its number on this machine.
        timeout_seconds: how long a collective, and the meeting itself, waits for a process.

    Yields:
        The device to compute on.

    Raises:
        ValueError: the others did not come in time.

    Example:
        >>> with process_group(torch.device("cpu"), timeout_seconds=600) as device:
        ...     print(device)
        cpu
    """
    if dist.is_initialized() or "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Ranks agree on the CPU, whatever they compute on.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    except dist.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = " ".join(str(error).split())
        raise ValueError(f"rank {os.environ['RANK']} did not meet the others at {place}: {reason}") from error
    yield device
    # Not after an error: a process whose partner is lost would wait for it.
    dist.destroy_process_group()
