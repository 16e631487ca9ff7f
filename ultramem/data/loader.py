"""Batches of windows of tokens, in an order that is a function of seed and position: resuming takes one integer."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ultramem.data.errors import DataError
from ultramem.data.permutation import permuted
from ultramem.data.tokens import TokenDataset


class TokenLoader:
    """Training batches. Every window is seen once an epoch; each epoch has an order of its own.

    A window is `sequence_length + 1` tokens: inputs and targets. Windows start `sequence_length` tokens apart, so that
    every token but the first is a target once an epoch. The windows of a position are the same for every `world_size`;
    a rank takes its rows of them.

    Args:
        dataset: where the tokens come from.
        sequence_length: targets in a window.
        batch_size: windows in a batch, over all ranks together.
        seed: another seed gives other orders.
        rank: which part of each batch is wanted.
        world_size: into how many equal parts the batches are divided.

    Raises:
        DataError: the dataset is shorter than a window, or the batch cannot be divided.

    Example:
        >>> loader = TokenLoader(TokenDataset.open("data/x"), sequence_length=256, batch_size=8, seed=0)
        >>> loader.batch(1000).shape
        torch.Size([8, 257])
    """

    def __init__(
        self,
        dataset: TokenDataset,
        sequence_length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        if seed < 0:
            raise DataError(f"seed is {seed}; it must be 0 or more.")
        self.dataset = dataset
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.num_windows = _count_windows(dataset, sequence_length)
        self._seed = seed
        self._rows = _rows(range(batch_size), batch_size, rank, world_size)

    def batch(self, position: int) -> Tensor:
        """Returns this rank's part of batch number `position`: int64 (batch_size / world_size, sequence_length + 1)."""
        epochs, indices = np.divmod(position * self.batch_size + self._rows, self.num_windows)
        windows = np.empty_like(indices)
        for epoch in np.unique(epochs):
            among = epochs == epoch
            windows[among] = permuted(indices[among], self.num_windows, self._seed, int(epoch))
        return _read(self.dataset, windows, self.sequence_length)


def validation_batches(
    dataset: TokenDataset,
    sequence_length: int,
    batch_size: int,
    num_batches: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Tensor]:
    """Returns an iterator over the first windows of a dataset in order, the same at every evaluation.

    There are `num_batches` batches, or as many as the dataset gives, the last one smaller if need be. Each rank gets as
    many rows as any other; for that, the very last windows may be left out.

    Args:
        dataset: where the tokens come from.
        sequence_length: targets in a window.
        batch_size: windows in a batch, over all ranks together; a multiple of `world_size`.
        num_batches: the most batches that are wanted.
        rank: which part of each batch is wanted.
        world_size: into how many equal parts the batches are divided.

    Returns:
        Tensors of int64 (at most batch_size / world_size, sequence_length + 1).

    Raises:
        DataError: the dataset is shorter than a window for each rank, or the batch cannot be divided.
    """
    assert num_batches > 0, num_batches
    wanted = min(num_batches * batch_size, _count_windows(dataset, sequence_length))
    wanted -= wanted % world_size
    if wanted == 0:
        raise DataError(f"the {dataset.split} split of {dataset.folder} gives less than a window to each process.")
    parts = [
        _rows(range(start, min(start + batch_size, wanted)), batch_size, rank, world_size)
        for start in range(0, wanted, batch_size)
    ]
    return (_read(dataset, windows, sequence_length) for windows in parts)


def _count_windows(dataset: TokenDataset, sequence_length: int) -> int:
    if sequence_length < 1:
        raise DataError(f"sequence_length is {sequence_length}; it must be 1 or more.")
    if dataset.num_tokens <= sequence_length:
        raise DataError(
            f"the {dataset.split} split of {dataset.folder} has {dataset.num_tokens} tokens, less than one window of "
            f"sequence_length + 1 = {sequence_length + 1}. Prepare more text, or lower sequence_length."
        )
    return (dataset.num_tokens - 1) // sequence_length


def _rows(rows: range, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    if batch_size < 1 or batch_size % world_size:
        raise DataError(f"batch_size is {batch_size}; it must be 1 or more, and a multiple of {world_size} processes.")
    assert 0 <= rank < world_size, (rank, world_size)
    return np.split(np.array(rows, dtype=np.int64), world_size)[rank]


def _read(dataset: TokenDataset, windows: np.ndarray, sequence_length: int) -> Tensor:
    starts = (windows * sequence_length).tolist()
    tokens = np.stack([dataset[start : start + sequence_length + 1] for start in starts])
    return torch.from_numpy(tokens.astype(np.int64))
