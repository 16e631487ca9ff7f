import numpy as np
import pytest
import torch

from ultramem.data.errors import DataError
from ultramem.data.loader import TokenLoader, validation_batches
from ultramem.data.tokens import TokenDataset

LENGTH = 8


@pytest.fixture
def dataset(write_data):
    return TokenDataset.open(write_data(np.arange(8 * 21 + 5), shard_tokens=30))  # 21 windows


def first_tokens(batches):
    return [start for batch in batches for start in batch[:, 0].tolist()]


def test_a_window_is_a_run_of_tokens_that_ends_where_the_next_begins(dataset):
    batch = TokenLoader(dataset, LENGTH, batch_size=4, seed=0).batch(2)
    assert batch.shape == (4, LENGTH + 1)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, batch[:, :1] + torch.arange(LENGTH + 1))
    assert (batch[:, 0] % LENGTH == 0).all()


def test_every_epoch_shows_every_window_once_in_an_order_of_its_own(dataset):
    loader = TokenLoader(dataset, LENGTH, batch_size=4, seed=0)
    assert loader.num_windows == 21
    starts = first_tokens(loader.batch(position) for position in range(21))  # 84 windows: four epochs
    epochs = [starts[first : first + 21] for first in range(0, 84, 21)]
    assert all(sorted(epoch) == list(range(0, 21 * LENGTH, LENGTH)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_is_a_function_of_seed_and_position(dataset):
    loader = TokenLoader(dataset, LENGTH, batch_size=4, seed=0)
    later = loader.batch(10**9)
    loader.batch(3)
    assert torch.equal(TokenLoader(dataset, LENGTH, batch_size=4, seed=0).batch(10**9), later)
    assert not torch.equal(TokenLoader(dataset, LENGTH, batch_size=4, seed=1).batch(10**9), later)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_ranks_together_have_the_batch_of_one(dataset, world_size):
    whole = TokenLoader(dataset, LENGTH, batch_size=6, seed=5)
    parts = [TokenLoader(dataset, LENGTH, 6, 5, rank, world_size) for rank in range(world_size)]
    for position in range(8):
        batches = [part.batch(position) for part in parts]
        assert {len(batch) for batch in batches} == {6 // world_size}
        assert torch.equal(torch.cat(batches), whole.batch(position))


def test_a_batch_larger_than_the_data_runs_through_several_epochs(dataset):
    starts = first_tokens([TokenLoader(dataset, LENGTH, batch_size=63, seed=0).batch(1)])
    assert sorted(starts) == sorted(list(range(0, 21 * LENGTH, LENGTH)) * 3)


def test_the_last_token_of_the_data_can_be_a_target(write_data):
    dataset = TokenDataset.open(write_data(np.arange(17)))
    assert 16 in TokenLoader(dataset, LENGTH, batch_size=2, seed=0).batch(0)


def test_impossible_settings_are_named(dataset):
    with pytest.raises(DataError, match="has 173 tokens, less than one window of sequence_length \\+ 1 = 174"):
        TokenLoader(dataset, 173, batch_size=1, seed=0)
    assert TokenLoader(dataset, 172, batch_size=1, seed=0).num_windows == 1
    with pytest.raises(DataError, match="sequence_length is 0"):
        TokenLoader(dataset, 0, batch_size=1, seed=0)
    with pytest.raises(DataError, match="batch_size is 4; it must be 1 or more, and a multiple of 3 processes"):
        TokenLoader(dataset, LENGTH, batch_size=4, seed=0, world_size=3)
    with pytest.raises(DataError, match="batch_size is 0"):
        TokenLoader(dataset, LENGTH, batch_size=0, seed=0)
    with pytest.raises(DataError, match="seed is -1; it must be 0 or more"):
        TokenLoader(dataset, LENGTH, batch_size=4, seed=-1)


def test_validation_takes_the_first_windows_in_order(dataset):
    batches = list(validation_batches(dataset, LENGTH, batch_size=4, num_batches=3))
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert first_tokens(batches) == list(range(0, 12 * LENGTH, LENGTH))
    assert torch.equal(batches[0], batches[0][:, :1] + torch.arange(LENGTH + 1))


def test_validation_ends_with_the_data(dataset):
    batches = list(validation_batches(dataset, LENGTH, batch_size=4, num_batches=99))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 1]
    assert first_tokens(batches) == list(range(0, 21 * LENGTH, LENGTH))


def test_validation_gives_each_rank_as_many_rows(dataset):
    whole = list(validation_batches(dataset, LENGTH, batch_size=8, num_batches=99))
    parts = [list(validation_batches(dataset, LENGTH, 8, 99, rank, 2)) for rank in range(2)]
    for expected, *ranks in zip(whole, *parts, strict=True):
        assert len(ranks[0]) == len(ranks[1])
        assert torch.equal(torch.cat(ranks), expected[: 2 * len(ranks[0])])


def test_validation_data_that_is_too_short_is_named_at_once(dataset):
    with pytest.raises(DataError, match="less than one window"):
        validation_batches(dataset, 1000, batch_size=4, num_batches=1)
    with pytest.raises(DataError, match="less than a window to each process"):
        validation_batches(dataset, 100, batch_size=4, num_batches=1, world_size=2)
