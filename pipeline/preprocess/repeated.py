"""Numbers that occur more than once, of millions: compared in arrays, a partition at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

PARTITIONS = 16


class Repeated(beam.PTransform):
    """(partition, numbers) -> one array, sorted, of the numbers that occur more than once."""

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        return (
            numbers
            | "Count" >> beam.CombinePerKey(_RepeatedFn())
            | "Arrays" >> beam.Values()
            | "Join" >> beam.CombineGlobally(_join)
        )


class _RepeatedFn(beam.CombineFn):
    def create_accumulator(self, *_: Any, **__: Any) -> list[np.ndarray]:
        return []

    def add_input(self, seen: list[np.ndarray], numbers: np.ndarray) -> list[np.ndarray]:
        seen.append(numbers)
        return seen

    def merge_accumulators(self, all_seen: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
        return [numbers for seen in all_seen for numbers in seen]

    def compact(self, seen: list[np.ndarray]) -> list[np.ndarray]:
        return [_concatenate(seen)]

    def extract_output(self, seen: list[np.ndarray]) -> np.ndarray:
        found, counts = np.unique(_concatenate(seen), return_counts=True)
        return found[counts > 1]


def _concatenate(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *arrays])


def _join(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.sort(_concatenate(arrays))


def partitioned(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers as `Repeated` takes them."""
    partition = numbers % PARTITIONS
    for number in np.unique(partition):
        yield int(number), numbers[partition == number]


def is_among(numbers: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Whether each number is in a sorted array."""
    if not len(found):
        return np.zeros(len(numbers), bool)
    return found[np.searchsorted(found, numbers).clip(max=len(found) - 1)] == numbers
