"""Exact nearest neighbours, with memory for tiles and the result."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer.retrieval.distances import as_embeddings, ordered
from trainer.retrieval.matches import Matches
from trainer.retrieval.range_search import RangeSearch
from trainer.retrieval.work_sharing import of_all, share

QUERY_TILE, GALLERY_TILE = 2048, 4096
NO_ROW = np.iinfo(np.int32).max  # past all others in the order of ties


class Neighbours(NamedTuple):
    """The nearest rows of every query, nearest first.

    rows: int32 [Q, k], row numbers in [0, N); -1 where a protocol leaves fewer than k.
    distances: float32 [Q, k], squared Euclidean, in [0, inf], ascending along a row; inf there.
    """

    rows: np.ndarray
    distances: np.ndarray


def nearest_neighbours(
    embeddings: Any,
    k: int,
    *,
    queries: np.ndarray | None = None,
    gallery: Any = None,
    protocol: Matches | None = None,
    strategy: tf.distribute.Strategy | None = None,
    query_tile: int = QUERY_TILE,
    gallery_tile: int = GALLERY_TILE,
    what: str | None = None,
) -> Neighbours:
    """The k nearest rows of each query, exactly, by squared Euclidean distance.

    embeddings: [M, D], array or tensor, of any floating type; read as float32.
    k: at least 1; clipped to the rows there are.
    queries: row numbers [Q] of embeddings; by default every row, Q = M.
    gallery: [N, D], where neighbours are looked for; by default the embeddings themselves, each but
    the query: it is left out by its row number, so exact copies of it stay in, at distance 0.
    protocol: of these embeddings and this gallery; what it leaves out is left out here.
    strategy: whose devices share the queries; of several workers, all have to call. By default one
    device.
    query_tile, gallery_tile: rows computed at a time; memory is O(query_tile x gallery_tile) beside
    the result [Q, k] and a copy of the gallery. The result does not depend on them.
    what: the queries are, for a progress line.

    Ties, equal in float32, are ordered by row number; a distance past float32's range is inf.
    Without rows to find, the result is [Q, 0].
    Raises ValueError on another rank, on rows that are not finite, on k or a tile below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1")
    if query_tile < 1:
        raise ValueError(f"query_tile is {query_tile}, must be at least 1")
    sought = as_embeddings(embeddings)
    found = sought if gallery is None else as_embeddings(gallery, "gallery embeddings")
    scan = RangeSearch(sought, found, tile=gallery_tile)
    k = min(k, max(len(found) - (gallery is None), 0))
    queries = np.arange(len(sought)) if queries is None else np.asarray(queries)
    rows = np.zeros((len(queries), k), np.int32)
    nearest = np.zeros((len(queries), k), np.float32)

    def left_out(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of queries [q]: places among them, and the rows of the gallery that do not count."""
        if protocol is not None:
            place, row, match = protocol.of_class(of)
            return place[~match], row[~match]
        return (np.arange(len(of)), of) if gallery is None else (of[:0], of[:0])

    def search(tile: np.ndarray) -> None:
        kept = _Nearest(len(tile), k)
        on_device = scan.query_tile(queries[tile])
        place, row = left_out(queries[tile])
        own = scan.place(row)
        for number, part in enumerate(scan.tiles):
            here = (part.start <= own) & (own < part.stop)
            without = np.stack([place[here], own[here]], axis=1)
            near = scan.within(on_device, number, None, kept.farthest, without)
            if len(near.row):
                distance = scan.distances(queries[tile], number, near)
                kept.add(near.query, near.row, distance)
        rows[tile] = np.where(kept.rows == NO_ROW, -1, kept.rows)
        nearest[tile] = kept.distances

    if k:
        if protocol is not None:
            tiles = protocol.tiles(queries, query_tile)
        else:
            places = np.arange(len(queries))
            tiles = [places[s : s + query_tile] for s in range(0, len(queries), query_tile)]
        share(strategy, tiles, search, what)
    return Neighbours(of_all(strategy, rows), of_all(strategy, nearest))


class _Nearest:
    """The k nearest rows found so far of each of some queries, by (distance, row)."""

    def __init__(self, queries: int, k: int) -> None:
        self.distances = np.full((queries, k), np.inf, np.float32)
        self.rows = np.full((queries, k), NO_ROW)

    @property
    def farthest(self) -> np.ndarray:
        return self.distances[:, -1]

    def add(self, query: np.ndarray, row: np.ndarray, distance: np.ndarray) -> None:
        """Pairs [n] of a query's place and a row."""
        own, k = np.unique(query), self.rows.shape[1]
        query = np.concatenate([np.repeat(own, k), query])
        row = np.concatenate([self.rows[own].ravel(), row])
        distance = np.concatenate([self.distances[own].ravel(), distance])
        key = ordered(query, distance)
        order = np.lexsort((row, key))
        first = np.searchsorted(key[order], own << 32)
        chosen = order[first[:, None] + np.arange(k)]
        self.rows[own], self.distances[own] = row[chosen], distance[chosen]
