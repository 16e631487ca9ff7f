"""The process group of a run, where torchrun or another launcher says that there are several processes."""

import os
import time
import uuid
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
    timeout = timedelta(seconds=timeout_seconds)
    try:
        launchers_store, rank, num_ranks = next(dist.rendezvous("env://", timeout=timeout))
        store = store_of_this_start(launchers_store, rank, num_ranks, timeout)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=num_ranks)
    except RuntimeError as error:  # gloo's own errors have no type
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = " ".join(str(error).split())
        raise ValueError(f"rank {os.environ['RANK']} did not meet the others at {place}: {reason}") from error
    yield device
    # Not after an error: a process whose partner is lost would wait for it.
    dist.destroy_process_group()


def store_of_this_start(store: dist.Store, rank: int, num_ranks: int, timeout: timedelta) -> dist.Store:
    """Return a part of a store which these processes share, and nobody wrote to before them.

    torchrun keeps one store for all its starts of the processes, so that after a restart the addresses of the killed
    ones are still there. Nothing that it tells a process differs between starts on all hosts alike.

    Args:
        store: seen by all processes; those of an earlier start are dead.
        rank: of this process. The first calls a name for this start until each of the others has answered to it.
        num_ranks: how many there are.
        timeout: how long to wait for them.

    Raises:
        dist.DistStoreError: the others did not come in time.
    """
    if rank == 0:
        start = uuid.uuid4().hex
        store.set("start", start)
        store.wait([f"{start}/{other}" for other in range(1, num_ranks)], timeout)
        store.set("start", "")  # before anyone goes on: the next start must not answer to this one's name
        store.set(f"{start}/complete", "")
        return dist.PrefixStore(start, store)
    start, give_up = "", time.monotonic() + timeout.total_seconds()
    store.wait(["start"], timeout)
    while not (start and store.check([f"{start}/complete"])):
        if time.monotonic() > give_up:
            raise dist.DistStoreError(f"rank 0 did not call within {timeout.total_seconds()} s")
        # A name left by a first rank that was killed while it called is never complete: listen for the next.
        start = store.get("start").decode() or start
        if start:
            store.set(f"{start}/{rank}", "")
        time.sleep(0.1)
    return dist.PrefixStore(start, store)
