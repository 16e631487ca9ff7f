import os
import re
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce

from tests.distributed.ranks import start_ranks
from ultramem.distributed.agreement import any_rank, gather
from ultramem.distributed.lost_ranks import LostRankError, name_lost_ranks

LOST = 1


def agree():
    any_rank(True)


def tell():
    gather("something")


def sum_in_a_graph():
    return all_reduce(torch.ones(3), "sum", dist.group.WORLD) + 1


def lose_a_rank(how, operation):
    dist.init_process_group("gloo", timeout=timedelta(seconds=2))
    dist.barrier()
    if dist.get_rank() == LOST:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    try:
        with name_lost_ranks():
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
            assert re.search("Timed out waiting|Connection (closed|reset)", message)
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
