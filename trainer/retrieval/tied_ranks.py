"""Where the matches of queries stand in the ranking of the whole gallery, without the ranking.

A query's metrics need, of each distance at which it has matches, how many rows are nearer and how
many are at the same distance. Those are counted, tile by tile: memory does not grow with the depth
of the ranking, and the reciprocal rank is exact at any depth.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from trainer.retrieval.distances import all_distances, distances, ordered
from trainer.retrieval.matches import Matches
from trainer.retrieval.range_search import RangeSearch

LARGE_CLASS = 64  # rows, from where on a matmul pays


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Rows at one distance of a query, where at least one of them is a match; nearest first.

    The first of every query, and all that begin among its R nearest.

    Attributes:
      query: int64 [B], places among the queries, ascending.
      matches: int64 [B], how many of the rows are.
      others: int64 [B], how many are not.
      matches_before: int64 [B], matches nearer than these.
      before: int64 [B], all rows nearer than these.
    """

    query: np.ndarray
    matches: np.ndarray
    others: np.ndarray
    matches_before: np.ndarray
    before: np.ndarray


def tied_blocks(
    scan: RangeSearch,
    embeddings: np.ndarray,
    gallery: np.ndarray,
    protocol: Matches,
    queries: np.ndarray,
) -> Blocks:
    """Of queries [q], each with a match: row numbers of embeddings [Q, D]; gallery [N, D]."""
    place, row, match, distance = _to_class(embeddings, gallery, protocol, queries)
    key, matches = np.unique(ordered(place[match], distance[match]), return_counts=True)
    found = _Counts(key, matches)
    depth = protocol.num_matches[queries]
    # Rows of the query's class are no misses.
    size, numbers = len(gallery), np.arange(len(queries))
    own = place * size + scan.place(row)  # ascending
    on_device = scan.query_tile(queries)
    counted = 0
    for number, part in enumerate(scan.tiles):
        least, most = found.range()
        edges = (np.searchsorted(own, numbers * size + end) for end in (part.start, part.stop))
        within = _ranges(*edges)
        left_out = np.stack([place[within], own[within] % size], axis=1)
        near = scan.within(on_device, number, least, most, left_out)
        found.add(near.nearer, ordered(near.query, scan.distances(queries, number, near)))
        # With as many rows again, a range is half as far: that is soon enough.
        if part.stop >= 2 * counted or part.stop == size:
            found.keep(depth)
            counted = part.stop
    return found.blocks()


class _Counts:
    """Blocks of matches of each query, while misses are counted, by (query, distance).

    Args:
      key: (query, distance), ascending, as `ordered` has it; at least one of each query.
      matches: at that distance.
    """

    def __init__(self, key: np.ndarray, matches: np.ndarray) -> None:
        self.key, self.matches = key, matches
        self.tied = np.zeros_like(matches)  # misses at that distance,
        self.between = np.zeros_like(matches)  # and between it and the one before
        self._locate()
        self.matches_before = self.before(matches)

    def _locate(self) -> None:
        self.query = self.key >> 32
        self.first = np.flatnonzero(np.diff(self.query, prepend=-1))

    def before(self, values: np.ndarray) -> np.ndarray:
        """Sums of what stands before each, within its query."""
        sums = np.cumsum(values) - values
        return sums - sums[self.first][self.query]

    def rows_before(self) -> np.ndarray:
        """All rows nearer than each block, so far."""
        return self.matches_before + self.before(self.between + self.tied) + self.between

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The distances between which misses are to be shown, of each query."""
        distance = (self.key & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
        return distance[self.first], distance[np.append(self.first[1:], len(self.key)) - 1]

    def add(self, nearer: np.ndarray, key: np.ndarray) -> None:
        """Misses: how many are nearer than the range of each query, and each that may be in it."""
        self.between[self.first] += nearer
        block = np.searchsorted(self.key, key)
        same = block < len(self.key)
        same[same] = self.query[block[same]] == key[same] >> 32  # else farther than all blocks
        block, key = block[same], key[same]
        tied = self.key[block] == key
        self.tied += np.bincount(block[tied], minlength=len(self.key))
        self.between += np.bincount(block[~tied], minlength=len(self.key))

    def keep(self, depth: np.ndarray) -> None:
        """Forgets blocks that begin behind so many rows [q], but for the first of each query."""
        needed = self.rows_before() < depth[self.query]
        needed[self.first] = True
        for name in ("key", "matches", "tied", "between", "matches_before"):
            setattr(self, name, getattr(self, name)[needed])
        self._locate()

    def blocks(self) -> Blocks:
        """What has come of it."""
        return Blocks(self.query, self.matches, self.tied, self.matches_before, self.rows_before())


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """All numbers from each start to its stop."""
    sizes = stops - starts
    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)


def _to_class(
    embeddings: np.ndarray, gallery: np.ndarray, protocol: Matches, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `Matches.of_class` gives, and the distances float32 [n]."""
    place, row, match = protocol.of_class(queries)
    sizes = protocol.class_sizes[queries]
    if sizes.max() < LARGE_CLASS:
        return place, row, match, distances(embeddings, gallery, queries[place], row)
    # Queries of a class stand side by side, and have the same rows.
    starts = np.flatnonzero(np.diff(protocol.classes[queries], prepend=-1))
    ends = np.cumsum(sizes)
    found = [
        all_distances(embeddings[queries[a:b]], gallery[row[ends[a] - sizes[a] : ends[a]]]).ravel()
        for a, b in zip(starts, [*starts[1:], len(queries)], strict=True)
    ]
    return place, row, match, np.concatenate(found)
