"""Ranks that meet at a store in which an earlier start of theirs left its keys."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from ultramem.distributed.mesh import make_mesh
from ultramem.distributed.process_group import process_group, store_of_this_start

TIMEOUT = timedelta(seconds=60)


@pytest.fixture
def store():
    return dist.HashStore()


def meet(store, late_first_rank=lambda: None):
    """The stores of three ranks, of which the first comes last."""
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(store_of_this_start, store, rank, 3, TIMEOUT) for rank in (1, 2)]
        late_first_rank()
        first = store_of_this_start(store, 0, 3, TIMEOUT)
        return [first, *(other.result() for other in others)]


def check_shared(stores):
    for number, store in enumerate(stores):
        store.set(f"address/{number}", "here")
    assert all(store.check([f"address/{number}" for number in range(3)]) for store in stores)


def test_a_second_start_sees_nothing_of_the_first(store):
    check_shared(meet(store))
    stores = meet(store)
    assert not any(part.check([f"address/{number}"]) for part in stores for number in range(3))
    check_shared(stores)


def test_a_first_rank_killed_while_it_called_is_not_waited_for(store):
    store.set("start", "killed")

    def wait_until_the_others_answered_to_the_killed_one():
        store.wait(["killed/1", "killed/2"], TIMEOUT)

    check_shared(meet(store, wait_until_the_others_answered_to_the_killed_one))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_partner_does_not_come_gives_up(store, rank):
    with pytest.raises(dist.DistStoreError):
        store_of_this_start(store, rank, 2, timedelta(seconds=0.2))


def timeouts():
    with process_group(torch.device("cpu"), timeout_seconds=123):
        mesh = make_mesh("cpu", trunk_shards=2, table_shards=1, timeout_seconds=123)
        groups = [dist.group.WORLD, *mesh.trunk.get_all_groups(), *mesh.tables.get_all_groups()]
        return [group._get_backend(torch.device("cpu")).options._timeout for group in groups]


def test_every_group_waits_as_long_as_it_is_told():
    assert run_ranks(timeouts, 2, join=False) == [[timedelta(seconds=123)] * 5] * 2
