"""Runs a function on several gloo ranks, each a process forked from a server that has imported torch once."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.distributed.ranks", "torch.distributed.fsdp", "ultramem.train.trainer"])


def meeting_place() -> dist.TCPStore:
    """A store at a port that the system chose, for ranks to meet at; as under torchrun their parent holds it."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def environment_of(rank: int, world_size: int, store: dist.TCPStore) -> dict[str, str]:
    """What torchrun would tell a rank on this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


class Rank:
    """A process that runs a function in the environment of a rank."""

    def __init__(
        self, function: Callable, rank: int, world_size: int, store: dist.TCPStore, arguments: tuple, join: bool
    ):
        self._store = store  # it lives as long as a rank
        environment = environment_of(rank, world_size, store)
        self._reader, writer = _processes.Pipe(duplex=False)
        self.process = _processes.Process(
            target=_run, args=(writer, environment, join, function, arguments), daemon=True
        )
        self.process.start()
        writer.close()

    def outcome(self, seconds: float = 280) -> tuple[Any, str | None]:
        """What the function returned and, where it raised or was killed, how; waits for the end of the process."""
        try:
            result, error = self._reader.recv() if self._reader.poll(seconds) else (None, "no answer in time")
        except EOFError:
            result, error = None, "killed"
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            return None, f"still alive after {seconds} s; {error}"
        return result, error


def start_ranks(function: Callable, world_size: int, *arguments, join: bool = True) -> list[Rank]:
    """Start the ranks; with `join` in a process group, else only with the environment for one."""
    store = meeting_place()
    return [Rank(function, rank, world_size, store, arguments, join) for rank in range(world_size)]


def shorten_timeouts(seconds: float) -> None:
    """From now on, for the process groups of this rank; what came before may have been as slow as it was."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def run_ranks(function: Callable, world_size: int, *arguments, join: bool = True) -> list[Any]:
    """What the function, which can be imported by its name, returns on each rank."""
    ranks = start_ranks(function, world_size, *arguments, join=join)
    with ThreadPoolExecutor(world_size) as pool:
        outcomes = [pool.submit(rank.outcome) for rank in ranks]
        for outcome in as_completed(outcomes):
            if outcome.result()[1]:
                wait(outcomes, timeout=5)  # the others may wait in vain for the one that failed
                for rank in ranks:
                    rank.process.kill()
    errors = [f"rank {rank}: {error}" for rank, outcome in enumerate(outcomes) if (error := outcome.result()[1])]
    assert not errors, "\n".join(errors)
    return [outcome.result()[0] for outcome in outcomes]


def _run(writer, environment: dict[str, str], join: bool, function: Callable, arguments: tuple) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        if join:
            dist.init_process_group("gloo")
        answer = (function(*arguments), None)
    except BaseException:
        answer = (None, traceback.format_exc())
    writer.send(answer)
    writer.close()
    if answer[1]:
        os._exit(1)  # to leave the group in order could take the others
    if dist.is_initialized():
        dist.destroy_process_group()
