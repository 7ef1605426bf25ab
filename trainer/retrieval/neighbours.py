"""Exact nearest neighbours, in memory for tiles and the result."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer.retrieval.distances import as_embeddings, sort_keys
from trainer.retrieval.matches import Matches
from trainer.retrieval.range_search import RangeSearch
from trainer.retrieval.work_sharing import for_each_tile, merge_workers

QUERY_TILE, GALLERY_TILE = 2048, 4096
NO_ROW = np.iinfo(np.int32).max  # Sorts after all rows of equal distance.


class Neighbours(NamedTuple):
    """The nearest rows of every query, nearest first.

    rows: int32 [Q, k], row numbers in [0, N); -1 where `matches` leaves fewer than k rows.
    distances: float32 [Q, k], squared Euclidean, in [0, inf], ascending along a row; inf where
      there is no row.
    """

    rows: np.ndarray
    distances: np.ndarray


def nearest_neighbours(
    embeddings: Any,
    k: int,
    *,
    queries: np.ndarray | None = None,
    gallery: Any = None,
    matches: Matches | None = None,
    strategy: tf.distribute.Strategy | None = None,
    query_tile: int = QUERY_TILE,
    gallery_tile: int = GALLERY_TILE,
    progress_name: str | None = None,
) -> Neighbours:
    """Finds the k nearest gallery rows of each query exactly, by squared Euclidean distance.

    Rows of equal distance, in float32, are ordered by row number. A distance beyond float32's range
    is inf. Without a row to find, the result is [Q, 0].

    Args:
      embeddings: [M, D], array or tensor of any floating type; read as float32.
      k: at least 1; clipped to the number of rows that can be found.
      queries: row numbers [Q] of embeddings; by default every row, Q = M.
      gallery: [N, D], the rows that are searched. By default the embeddings themselves without the
        query: the query is left out by its row number, so its copies are found, at distance 0.
      matches: of these embeddings and this gallery; the rows that it leaves out are left out here.
      strategy: whose devices share the queries; every worker has to call. By default one device.
      query_tile: queries computed at a time. Memory is O(query_tile x gallery_tile), the result
        [Q, k] and a copy of the gallery. The result does not depend on the tile sizes.
      gallery_tile: gallery rows computed at a time.
      progress_name: what the progress line calls the work; None for no progress line.

    Raises:
      ValueError: an array is of another rank, rows are not finite, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1")
    rows = as_embeddings(embeddings)
    gallery_rows = rows if gallery is None else as_embeddings(gallery, "gallery embeddings")
    range_search = RangeSearch(rows, gallery_rows, tile=gallery_tile)
    k = min(k, max(len(gallery_rows) - (gallery is None), 0))
    queries = np.arange(len(rows)) if queries is None else np.asarray(queries)
    result = Neighbours(
        np.zeros((len(queries), k), np.int32), np.zeros((len(queries), k), np.float32)
    )

    def search(tile: np.ndarray) -> None:
        place = row = queries[:0]
        if matches is not None:
            place, row, match = matches.class_rows(queries[tile])
            place, row = place[~match], row[~match]
        elif gallery is None:
            place, row = np.arange(len(tile)), queries[tile]
        nearest = _nearest(range_search, queries[tile], k, place, row)
        result.rows[tile] = np.where(nearest.rows == NO_ROW, -1, nearest.rows)
        result.distances[tile] = nearest.distances

    if k:
        places = np.arange(len(queries))
        tiles = [places[s : s + query_tile] for s in range(0, len(queries), query_tile)]
        if matches is not None:
            tiles = matches.query_tiles(queries, query_tile)
        for_each_tile(strategy, tiles, search, progress_name)
    return Neighbours(*(merge_workers(strategy, part) for part in result))


def _nearest(
    range_search: RangeSearch, queries: np.ndarray, k: int, place: np.ndarray, row: np.ndarray
) -> Neighbours:
    """The nearest rows of queries [q], without the pairs [n] of a query's place and a row.

    The rows of a query are sorted by distance, then by row; NO_ROW stands where none is left.
    """
    nearest = Neighbours(
        np.full((len(queries), k), NO_ROW), np.full((len(queries), k), np.inf, np.float32)
    )
    nothing = np.zeros(len(queries), np.float32)
    on_device = range_search.query_tile(queries)
    position = range_search.positions(row)
    for number, part in enumerate(range_search.tiles):
        in_tile = (part.start <= position) & (position < part.stop)
        left_out = np.stack([place[in_tile], position[in_tile]], axis=1)
        farthest = nearest.distances[:, -1]
        candidates = range_search.within(on_device, number, nothing, farthest, left_out)
        if len(candidates.row):
            distance = range_search.distances(queries, number, candidates)
            _add(nearest, candidates.query, candidates.row, distance)
    return nearest


def _add(nearest: Neighbours, query: np.ndarray, row: np.ndarray, distance: np.ndarray) -> None:
    """Adds pairs [n] of a query's place and a row to the nearest rows found so far."""
    changed, k = np.unique(query), nearest.rows.shape[1]
    query = np.concatenate([np.repeat(changed, k), query])
    row = np.concatenate([nearest.rows[changed].ravel(), row])
    distance = np.concatenate([nearest.distances[changed].ravel(), distance])
    key = sort_keys(query, distance)
    order = np.lexsort((row, key))
    first = np.searchsorted(key[order], changed << 32)
    chosen = order[first[:, None] + np.arange(k)]
    nearest.rows[changed], nearest.distances[changed] = row[chosen], distance[chosen]
