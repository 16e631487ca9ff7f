"""A shuffle without memory: a keyed bijection of 0 … n-1, computed for the places that are asked for."""

from math import isqrt

import numpy as np

_ROUNDS = 6


def permuted(indices: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns where each index goes under the permutation that (seed, epoch) chooses among those of 0 … size-1.

    A Feistel network on pairs (left, right) of numbers below the root of the size, rounded up. Whoever lands outside,
    walks on until inside; that is at most about 2 in sqrt(size). Both ideas are from J. Black and P. Rogaway, "Ciphers
    with Arbitrary Finite Domains" (2002). It is for shuffling, not for keeping secrets.

    Args:
        indices: int64 of any shape, each at least 0 and less than `size`.
        size: how many things are shuffled.
        seed: not negative.
        epoch: not negative; each has a permutation of its own.

    Returns:
        int64 of the same shape.

    Example:
        >>> sorted(permuted(np.arange(5), 5, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
    side = np.uint64(isqrt(size - 1) + 1)
    places = indices.astype(np.uint64)
    outside = np.ones(places.shape, dtype=bool)
    while outside.any():
        left, right = np.divmod(places[outside], side)
        for key in keys:
            left, right = right, (left + _mixed(right ^ key) % side) % side
        places[outside] = left * side + right
        outside = places >= size
    return places.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): each bit of the input moves all bits of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
