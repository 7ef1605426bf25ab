"""Permutations and random numbers that depend on a key alone."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.stateless_random import key, permuted, uniform


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5), seed=st.integers(-9, 2**70))
def test_permutations(sizes, seed):
    """Places of all sizes are permuted, also if one call has rows of several sizes."""
    keys = key(seed, np.arange(len(sizes)))
    places = np.stack([np.arange(max(sizes)) % size for size in sizes])
    found = permuted(places, np.array(sizes), keys)
    for line, size in zip(found, sizes, strict=True):
        assert sorted(line[:size].tolist()) == list(range(size))


@given(size=st.integers(2**16, 2**31), places=st.lists(st.integers(0, 2**16 - 1), min_size=1))
def test_large_ones_stay_in_range_and_apart(size, places):
    found = permuted(np.array([places]), size, key(1))
    assert ((found >= 0) & (found < size)).all()
    assert len(set(found[0].tolist())) == len(set(places))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_is_about_as_likely(size):
    """All are equally frequent within 15 %; four standard deviations are at most 11 %."""
    count = 1500 * math.factorial(size)
    keys = key(5, np.arange(count))
    found = permuted(np.tile(np.arange(size), (count, 1)), size, keys)
    orders, times = np.unique(found, axis=0, return_counts=True)
    assert [tuple(order) for order in orders] == list(itertools.permutations(range(size)))
    assert np.abs(times / 1500 - 1).max() < 0.15


def test_pairs_of_a_larger_one():
    """All pairs of first elements are equally frequent, by a chi-squared test."""
    size, count = 13, 156 * 500
    found = permuted(np.tile(np.arange(2), (count, 1)), size, key(3, np.arange(count)))
    times = np.bincount(found[:, 0] * size + found[:, 1], minlength=size**2).reshape(size, size)
    assert (times.diagonal() == 0).all()
    expected = count / (size * (size - 1))
    chi_squared = ((times[~np.eye(size, dtype=bool)] - expected) ** 2 / expected).sum()
    degrees = size * (size - 1) - 1
    assert chi_squared < degrees + 6 * math.sqrt(2 * degrees)


def test_keys():
    """Each word and their order matter; scalars and arrays give the same keys."""
    keys = [key(1, 2), key(2, 1), key(1), key(1, 2, 0), key(1, 3), key(-1, 2)]
    assert len({int(k) for k in keys}) == len(keys)
    assert key(1, np.array([2, 3])).tolist() == [int(key(1, 2)), int(key(1, 3))]
    assert key(2**64 + 7) == key(7)


def test_uniform():
    numbers = uniform(key(0, np.arange(10_000)), 3)
    assert numbers.shape == (10_000, 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        counts = np.histogram(column, bins=10, range=(0, 1))[0]
        assert np.abs(counts - 1000).max() < 150
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.05


def test_known_numbers():
    """Pins the random streams: a change would break the resume of runs that are under way."""
    assert int(key(1, 2)) == 13608149317741381227
    assert permuted(np.arange(7)[None], 7, key(1)).tolist() == [[3, 5, 1, 2, 0, 6, 4]]
    np.testing.assert_allclose(uniform(key(1), 2), [0.69351214, 0.42321145], atol=1e-8)
