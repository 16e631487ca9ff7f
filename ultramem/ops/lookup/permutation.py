"""The fixed random permutation of implicit value expansion, computed from the slot's number and a seed.

UltraMem, section 3.3: logical slots are shuffled so that the E copies of a row do not sit together. A logical slot is a
point (i, j) of an n x n grid, so a Feistel network over Z_n x Z_n is a permutation for any n: no cycle walking, no
memory, the same on every rank and after every reload.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ultramem.ops.mixing import MASK, mix_bits

NUM_ROUNDS = 4


class Placement(NamedTuple):
    """Where a layer's logical slots live in a table; `physical_rows` computes it."""

    num_keys: int
    """n, the logical keys of a side: there are n * n slots."""
    expansion: int = 1
    """E, the slots that share a row: the layer's window of the table has n * n / E rows."""
    seed: int = 0
    """Of the slots' permutation."""
    first_row: int = 0
    """Where the window begins; behind the table's last row it goes on at row 0."""


def round_offsets(num_keys: int, seed: int, device: torch.device | None = None) -> Tensor:
    """What every Feistel round adds for each half: ``(4, n)`` int64 in ``[0, n)``, a 32-bit mixing hash."""
    rounds = torch.arange(1, NUM_ROUNDS + 1, device=device)[:, None] * 0x9E3779B1
    keys = torch.arange(num_keys, device=device)[None] * 0x85EBCA6B
    return mix_bits(keys + rounds + (seed & MASK) * 0x27D4EB2F) % num_keys


def permute(slots: Tensor, num_keys: int, seed: int) -> Tensor:
    """A permutation of ``[0, n * n)``; int64 in, int64 out, any shape."""
    left, right = slots // num_keys, slots % num_keys
    for offsets in round_offsets(num_keys, seed, slots.device):
        left, right = right, (left + offsets[right]) % num_keys
    return left * num_keys + right


def physical_rows(
    slots: Tensor, num_keys: int, expansion: int, seed: int, first_row: int = 0, num_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Where logical slots live: every row of a window of n * n / E rows serves exactly E slots, one of each group.

    Args:
        slots: int64, any shape, in ``[0, n * n)``.
        num_keys: n, the logical keys of a side; n * n is a multiple of E.
        expansion: E. With E = 1 slots are rows, unshuffled.
        seed: chooses the permutation; its low 32 bits count.
        first_row: of the table, where the window begins.
        num_rows: R of the table, behind whose last row the window goes on at row 0; the window's own when None.

    Returns:
        rows in ``[0, R)`` and groups in ``[0, E)``, int64, both shaped as ``slots``.

    Example:
        >>> rows, groups = physical_rows(torch.arange(36), num_keys=6, expansion=4, seed=0)
        >>> sorted((rows * 4 + groups).tolist()) == list(range(36))
        True
        >>> physical_rows(torch.arange(4), num_keys=2, expansion=1, seed=0, first_row=7, num_rows=9)[0]
        tensor([7, 8, 0, 1])
    """
    if expansion > 1:
        slots = permute(slots, num_keys, seed)
    rows = (slots // expansion + first_row) % (num_rows or num_keys**2 // expansion)
    return rows, slots % expansion


def check_placement(table: Tensor, placement: Placement) -> None:
    """Raises a ValueError where a table cannot hold the rows of its slots."""
    num_keys, expansion, _, first_row = placement
    num_rows = table.shape[0]
    if num_keys**2 % expansion or num_keys**2 // expansion > num_rows:
        raise ValueError(f"table has {num_rows} rows: {num_keys} keys a side, E {expansion} need n * n / E")
    if not 0 <= first_row < num_rows:
        raise ValueError(f"first_row is {first_row}: the table has rows 0 to {num_rows - 1}")


def logical_slots(rows: Tensor, groups: Tensor, num_keys: int, expansion: int, seed: int) -> Tensor:
    """Which slots live there: the inverse of `physical_rows`.

    Args:
        rows: int64 in ``[0, n * n / E)``.
        groups: int64 in ``[0, E)``, shaped as ``rows``.
        num_keys: n.
        expansion: E.
        seed: of the permutation.

    Returns:
        slots in ``[0, n * n)``.

    Example:
        >>> slots = torch.arange(36)
        >>> rows, groups = physical_rows(slots, num_keys=6, expansion=4, seed=0)
        >>> torch.equal(logical_slots(rows, groups, num_keys=6, expansion=4, seed=0), slots)
        True
    """
    if expansion == 1:
        return rows
    permuted = rows * expansion + groups
    left, right = permuted // num_keys, permuted % num_keys
    for offsets in round_offsets(num_keys, seed, rows.device).flip(0):
        left, right = (right - offsets[left]) % num_keys, left
    return left * num_keys + right
