"""Finds the numbers that occur more than once among millions.

The numbers are compared in arrays, one partition at a time, because each element of a pipeline
costs Beam more than many numbers.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

PARTITIONS = 16


@beam.ptransform_fn
def find_repeated(numbers: beam.PCollection) -> beam.PCollection:
    """(partition, [n] uint64) -> one sorted array of the numbers that occur more than once."""
    return (
        numbers
        | "Count" >> beam.CombinePerKey(_RepeatedFn())
        | "Arrays" >> beam.Values()
        | "Join" >> beam.CombineGlobally(_join)
    )


class _RepeatedFn(beam.CombineFn):
    def create_accumulator(self, *_: Any, **__: Any) -> list[np.ndarray]:
        return []

    def add_input(self, arrays: list[np.ndarray], numbers: np.ndarray) -> list[np.ndarray]:
        arrays.append(numbers)
        return arrays

    def merge_accumulators(self, accumulators: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
        return [numbers for arrays in accumulators for numbers in arrays]

    def compact(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [_concatenate(arrays)]

    def extract_output(self, arrays: list[np.ndarray]) -> np.ndarray:
        numbers, counts = np.unique(_concatenate(arrays), return_counts=True)
        return numbers[counts > 1]


def _concatenate(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *arrays])


def _join(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.sort(_concatenate(arrays))


def partitioned(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields numbers [n] in the form that `find_repeated` takes; nothing if there are none."""
    partition = numbers % PARTITIONS
    for number in np.unique(partition):
        yield int(number), numbers[partition == number]


def is_among(numbers: np.ndarray, sorted_numbers: np.ndarray) -> np.ndarray:
    """Returns, for each of the numbers [n], whether it is in a sorted array: [n] bool."""
    if not len(sorted_numbers):
        return np.zeros(len(numbers), bool)
    places = np.searchsorted(sorted_numbers, numbers).clip(max=len(sorted_numbers) - 1)
    return sorted_numbers[places] == numbers
