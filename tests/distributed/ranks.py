"""Runs a function on several gloo ranks, each a process forked from a server that has imported torch once."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import closing
from typing import Any

import torch
import torch.distributed as dist

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.distributed.ranks", "torch.distributed.fsdp", "ultramem.train.trainer"])


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment_of(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun would tell a rank on this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Rank:
    """A process that runs a function in the environment of a rank."""

    def __init__(self, function: Callable, rank: int, world_size: int, port: int, arguments: tuple, join: bool):
        environment = environment_of(rank, world_size, port)
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
    port = free_port()
    return [Rank(function, rank, world_size, port, arguments, join) for rank in range(world_size)]


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
