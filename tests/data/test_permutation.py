import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from ultramem.data.permutation import permuted

SEEDS = st.integers(0, 2**63)


@given(size=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10**6))
@example(size=1, seed=0, epoch=0)
@example(size=2500, seed=0, epoch=0)  # a square: nobody lands outside
@example(size=2501, seed=0, epoch=0)
def test_every_place_is_taken_once(size, seed, epoch):
    places = permuted(np.arange(size), size, seed, epoch)
    assert places.dtype == np.int64
    assert np.array_equal(np.sort(places), np.arange(size))


@given(size=st.integers(10**6, 10**15), seed=SEEDS)
def test_places_are_computed_one_by_one_and_for_huge_sizes(size, seed):
    indices = np.linspace(0, size - 1, 50).astype(np.int64).reshape(5, 10)
    places = permuted(indices, size, seed, 3)
    assert places.min() >= 0
    assert places.max() < size
    assert len(np.unique(places)) == len(np.unique(indices))
    assert permuted(indices[2:3, 4:5], size, seed, 3) == places[2, 4]


def test_seeds_and_epochs_give_other_orders():
    orders = {tuple(permuted(np.arange(40), 40, seed, epoch)) for seed in range(30) for epoch in range(30)}
    assert len(orders) == 900


def test_every_place_is_as_likely_as_any_other():
    size, trials = 37, 4000
    places = np.array([permuted(np.arange(size), size, seed, 0) for seed in range(trials)])
    counts = np.array([np.bincount(column, minlength=size) for column in places.T])
    expected = trials / size
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_neighbours_are_scattered():
    size = 10_000
    places = permuted(np.arange(size), size, 0, 0)
    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.05
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05


def test_the_order_never_changes_between_versions():
    # A run that is resumed by a later version must go on with the windows that it has not seen.
    assert permuted(np.arange(10), 10, seed=0, epoch=0).tolist() == [0, 4, 5, 7, 2, 1, 3, 8, 6, 9]
    huge = [952657653791, 599094473603, 105833212285]
    assert permuted(np.arange(3), 10**12, seed=7, epoch=2).tolist() == huge
