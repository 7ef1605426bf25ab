"""Numbers that occur more than once, against a count of all numbers."""

import collections

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from pipeline.preprocess.repeated import PARTITIONS, find_repeated, is_among, partitioned


def is_one_array(expected: list[int]):
    def check(results):
        [numbers] = results
        assert numbers.dtype == np.uint64
        assert numbers.tolist() == expected

    return check


@pytest.mark.parametrize("count", [0, 1, 500])
def test_repeated_numbers(count):
    rng = np.random.default_rng(count)
    arrays = [rng.integers(0, 700, count, np.uint64) for _ in range(3)]
    counts = collections.Counter(number for array in arrays for number in array.tolist())
    expected = sorted(number for number, times in counts.items() if times > 1)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        found = pipeline | beam.Create(arrays) | beam.FlatMap(partitioned) | find_repeated()
        assert_that(found, is_one_array(expected))


def test_partitions_hold_every_number_once():
    numbers = np.arange(100, dtype=np.uint64)
    parts = dict(partitioned(numbers))
    assert parts.keys() == {*range(PARTITIONS)}
    assert sorted(np.concatenate([*parts.values()])) == numbers.tolist()
    assert list(partitioned(np.empty(0, np.uint64))) == []


def test_is_among():
    numbers = np.array([0, 5, 7, 2**64 - 1], np.uint64)
    among = np.array([5, 6, 2**64 - 1], np.uint64)
    assert is_among(numbers, among).tolist() == [False, True, False, True]
    assert is_among(numbers, among[:0]).tolist() == [False] * 4
    assert is_among(numbers[:0], among).tolist() == []
