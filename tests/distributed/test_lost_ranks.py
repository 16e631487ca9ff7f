import os
import re
import signal
import time
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.device_mesh import init_device_mesh

from tests.distributed.ranks import shorten_timeouts, start_ranks
from ultramem.distributed.agreement import any_rank, gather
from ultramem.distributed.exchange import Exchange, exchange
from ultramem.distributed.lost_ranks import LostRankError, name_lost_ranks

LOST = 1


def agree():
    any_rank(True)


def tell():
    gather("something")


def sum_in_a_graph():
    return all_reduce(torch.ones(3), "sum", dist.group.WORLD) + 1


def give_pieces():
    mesh = init_device_mesh("cpu", (3,))
    exchange(torch.ones(3), [1, 1, 1], [1, 1, 1], mesh)


def give_gradients():
    mesh = init_device_mesh("cpu", (3,))
    way, pieces = Exchange([1, 1, 1], [1, 1, 1], mesh), torch.ones(3, requires_grad=True)
    with patch.object(Exchange, "all_to_all", lambda exchange: torch.ones(3)):
        arrived = way.wait(way.start(pieces))  # as if all had been there
    arrived.sum().backward()


def lose_a_rank(how, operation):
    dist.init_process_group("gloo")
    dist.barrier()
    store = dist.group.WORLD.get_group_store()
    store.set(f"through the barrier/{dist.get_rank()}", "")
    store.wait([f"through the barrier/{rank}" for rank in range(dist.get_world_size())])
    shorten_timeouts(2)
    if dist.get_rank() == LOST:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    try:
        with name_lost_ranks(patience_seconds=10):
            operation()
    except LostRankError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("how", "operation", "name"),
    [
        ("killed", agree, "all_reduce, called by any_rank in agreement.py"),
        ("hung", tell, "all_gather, called by gather in agreement.py"),
        ("hung", sum_in_a_graph, "wait_tensor"),
        ("killed", give_pieces, "all_to_all, called by forward in exchange.py"),
        ("hung", give_gradients, "all_to_all, called by backward in exchange.py"),
    ],
)
def test_who_waited_for_what_and_who_did_not_come(how, operation, name):
    ranks = start_ranks(lose_a_rank, 3, how, operation, join=False)
    for number, rank in enumerate(ranks):
        if number != LOST:
            message, error = rank.outcome()
            assert error is None
            assert message.startswith(f"rank {number}: {name} failed (")
            assert message.endswith("; no word from rank 1. The last checkpoint stays: start all ranks again")
            assert re.search("Timed out waiting|Connection (closed|reset)|timeout caused pair closure", message)
            assert "\n" not in message
    ranks[LOST].process.kill()


def fail():
    dist.init_process_group("gloo")
    with pytest.raises(RuntimeError, match="a bug"), name_lost_ranks():
        raise RuntimeError("a bug")


def test_other_errors_pass():
    for rank in start_ranks(fail, 1, join=False):
        assert rank.outcome()[1] is None
    with pytest.raises(RuntimeError, match="a bug"), name_lost_ranks():
        raise RuntimeError("a bug")
