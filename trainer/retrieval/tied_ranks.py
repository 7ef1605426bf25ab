"""The ranks of each query's matches in the ranking of the whole gallery, without that ranking.

To compute a query's metrics, it is enough to know two counts for each distance at which it has
matches: how many rows are nearer, and how many are at that distance. They are counted tile by tile,
so memory does not grow with the depth of the ranking, and the reciprocal rank is exact at any
depth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trainer.retrieval.distances import all_distances, distances, sort_keys
from trainer.retrieval.matches import Matches
from trainer.retrieval.range_search import RangeSearch

LARGE_CLASS = 64  # Rows of a class from which a matmul is faster than pairs of rows.


class Blocks(NamedTuple):
    """Blocks of rows at one distance from a query, at least one of them a match; nearest first.

    The blocks of a query are its first one, and all that begin among its R nearest rows, where R is
    its number of matches.

    Attributes:
      query: int64 [B], places among the queries, ascending.
      matches: int64 [B], number of rows of the block that are matches.
      others: int64 [B], number of rows of the block that are not.
      matches_before: int64 [B], number of matches nearer than the block.
      before: int64 [B], number of rows nearer than the block.
    """

    query: np.ndarray
    matches: np.ndarray
    others: np.ndarray
    matches_before: np.ndarray
    before: np.ndarray


def tied_blocks(range_search: RangeSearch, matches: Matches, queries: np.ndarray) -> Blocks:
    """Finds the blocks of queries.

    Args:
      range_search: the embeddings and the gallery.
      matches: of these embeddings and this gallery.
      queries: row numbers [q] of embeddings, each with at least one match.
    """
    place, row, match = matches.class_rows(queries)
    distance = _class_distances(range_search, matches, queries, row)
    key, num_matches = np.unique(sort_keys(place[match], distance[match]), return_counts=True)
    counts = _Counts(key, num_matches)
    depth = matches.num_matches[queries]
    # Rows of the query's class are no misses. The pairs are sorted by query, then by position.
    size, places = len(range_search.gallery), np.arange(len(queries))
    class_pairs = place * size + range_search.positions(row)
    on_device = range_search.query_tile(queries)
    last_pruned = 0
    for number, part in enumerate(range_search.tiles):
        min_distance, max_distance = counts.distance_range()
        starts = np.searchsorted(class_pairs, places * size + part.start)
        stops = np.searchsorted(class_pairs, places * size + part.stop)
        in_tile = _ranges(starts, stops)
        left_out = np.stack([place[in_tile], class_pairs[in_tile] % size], axis=1)
        misses = range_search.within(on_device, number, min_distance, max_distance, left_out)
        distance = range_search.distances(queries, number, misses)
        counts.add_misses(misses.nearer, sort_keys(misses.query, distance))
        # With twice as many rows counted, the ranges are about half as wide: pruning then is
        # often enough.
        if part.stop >= 2 * last_pruned or part.stop == size:
            counts.prune(depth)
            last_pruned = part.stop
    return counts.blocks()


class _Counts:
    """The blocks of each query, while misses are counted.

    Args:
      key: sort keys of (query, distance), ascending; at least one of each query.
      matches: number of matches at each of these distances.
    """

    def __init__(self, key: np.ndarray, matches: np.ndarray) -> None:
        self.key, self.matches = key, matches
        self.tied = np.zeros_like(matches)  # Misses at the distance of the block.
        self.between = np.zeros_like(matches)  # Misses between the block before and this one.
        self._index_queries()
        self.matches_before = self._sums_before(matches)

    def _index_queries(self) -> None:
        self.query = self.key >> 32
        self.first = np.flatnonzero(np.diff(self.query, prepend=-1))

    def _sums_before(self, values: np.ndarray) -> np.ndarray:
        """For each block, the sum of the values of its query's blocks before it."""
        sums = np.cumsum(values) - values
        return sums - sums[self.first][self.query]

    def _rows_before(self) -> np.ndarray:
        """For each block, the number of rows counted so far that are nearer."""
        return self.matches_before + self._sums_before(self.between + self.tied) + self.between

    def distance_range(self) -> tuple[np.ndarray, np.ndarray]:
        """The distances [q] of each query's first and last block: misses between are needed."""
        distance = (self.key & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
        return distance[self.first], distance[np.append(self.first[1:], len(self.key)) - 1]

    def add_misses(self, nearer: np.ndarray, key: np.ndarray) -> None:
        """Counts misses.

        Args:
          nearer: [q], number of misses nearer than the range of each query.
          key: sort keys of all other misses that may be in the range.
        """
        self.between[self.first] += nearer
        block = np.searchsorted(self.key, key)
        in_range = block < len(self.key)
        in_range[in_range] = self.query[block[in_range]] == key[in_range] >> 32
        block, key = block[in_range], key[in_range]
        tied = self.key[block] == key
        self.tied += np.bincount(block[tied], minlength=len(self.key))
        self.between += np.bincount(block[~tied], minlength=len(self.key))

    def prune(self, depth: np.ndarray) -> None:
        """Drops the blocks that begin after rank depth [q], except the first one of each query."""
        needed = self._rows_before() < depth[self.query]
        needed[self.first] = True
        for name in ("key", "matches", "tied", "between", "matches_before"):
            setattr(self, name, getattr(self, name)[needed])
        self._index_queries()

    def blocks(self) -> Blocks:
        """The result, once all misses are counted."""
        return Blocks(self.query, self.matches, self.tied, self.matches_before, self._rows_before())


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """All numbers of the ranges from each start to its stop."""
    sizes = stops - starts
    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)


def _class_distances(
    range_search: RangeSearch, matches: Matches, queries: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Distances float32 [n] of the pairs of `Matches.class_rows`."""
    embeddings, gallery = range_search.queries, range_search.gallery
    sizes = matches.class_sizes[queries]
    if sizes.max() < LARGE_CLASS:
        return distances(embeddings, gallery, np.repeat(queries, sizes), row)
    # Queries of a class stand side by side, and are compared with the same rows.
    starts = np.flatnonzero(np.diff(matches.classes[queries], prepend=-1))
    ends = np.cumsum(sizes)
    by_class = [
        all_distances(embeddings[queries[a:b]], gallery[row[ends[a] - sizes[a] : ends[a]]]).ravel()
        for a, b in zip(starts, [*starts[1:], len(queries)], strict=True)
    ]
    return np.concatenate(by_class)
