"""Recall@K, MAP@R, R-precision and mean reciprocal rank of each query, each class and in total."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.retrieval.distances import as_embeddings
from trainer.retrieval.matches import Gallery, Matches, as_labels
from trainer.retrieval.neighbours import GALLERY_TILE, QUERY_TILE
from trainer.retrieval.range_search import RangeSearch
from trainer.retrieval.tied_metrics import expected
from trainer.retrieval.tied_ranks import tied_blocks
from trainer.retrieval.work_sharing import for_each_tile, merge_workers

MAP_AT_R, R_PRECISION, RECIPROCAL_RANK = "map_at_r", "r_precision", "mean_reciprocal_rank"


def recall_name(k: int) -> str:
    """Name of Recall@K."""
    return f"recall_at_{k}"


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """Metrics of the M queries that have a match.

    The metrics are named recall_at_K, map_at_r, r_precision and mean_reciprocal_rank. Each lies in
    [0, 1]. For a single query, mean_reciprocal_rank is its reciprocal rank.

    Attributes:
      mean: name -> mean over these queries; NaN where no query has a match.
      of_queries: name -> float64 [M].
      of_classes: name -> float64 [C], means over the queries of each class.
      queries: int64 [M], row numbers of these queries, ascending.
      class_labels: [C], distinct labels of these queries, ascending.
      class_counts: int64 [C], number of these queries in each class.
      num_without_match: number of queries left out, since no row of the gallery is a match.
      num_gallery: number of gallery rows.
    """

    mean: Mapping[str, float]
    of_queries: Mapping[str, np.ndarray]
    of_classes: Mapping[str, np.ndarray]
    queries: np.ndarray
    class_labels: np.ndarray
    class_counts: np.ndarray
    num_without_match: int
    num_gallery: int

    @property
    def num_queries(self) -> int:
        """Number of queries with a match, M."""
        return len(self.queries)

    @property
    def num_classes(self) -> int:
        """Number of classes of these queries, C."""
        return len(self.class_labels)

    @property
    def map_at_r(self) -> float:
        """Mean MAP@R: the metric by which the best model of a run is chosen."""
        return self.mean[MAP_AT_R]


def retrieval_metrics(
    embeddings: Any,
    labels: Any,
    *,
    groups: Any = None,
    gallery: Gallery | None = None,
    recall_at: Iterable[int] = (1, 2, 4, 8),
    strategy: tf.distribute.Strategy | None = None,
    query_tile: int = QUERY_TILE,
    gallery_tile: int = GALLERY_TILE,
    progress_name: str | None = None,
) -> RetrievalMetrics:
    """Recall@K, MAP@R, R-precision and mean reciprocal rank; docs/evaluation.md defines them.

    Rows are ranked by the distance of `trainer.retrieval.distances`. Where distances are equal,
    each metric is its expected value over all orders of the tied rows, so the order of the rows
    does not matter. Where no query has a match, the means are NaN, and the counts tell why.

    Memory is O(query_tile x gallery_tile), a copy of the gallery and some numbers for each query,
    with classes of up to a million rows. With larger classes, memory also grows with the class
    size.

    Args:
      embeddings: [Q, D] of the queries, array or tensor of any floating type; read as float32.
      labels: integers [Q]; the matches of a query are the gallery rows with its label.
      groups: [Q], strings or integers, None or "" for a row without a group. Rows that have a
        query's label and its group are left out of its ranking, as if they were not in the gallery.
      gallery: the rows that are searched; by default the queries themselves, where each query is
        left out of its own ranking by its row number.
      recall_at: values of K, each at least 1. A K beyond the gallery's size counts all of it.
      strategy: whose devices share the queries; every worker has to call. By default one device.
      query_tile: largest number of queries computed at a time.
      gallery_tile: largest number of gallery rows computed at a time.
      progress_name: what the progress line calls the work; None for no progress line.

    Raises:
      ValueError: shapes do not fit, labels are not integers, rows are not finite, or K is below 1.
    """
    cutoffs = sorted(set(recall_at))
    if cutoffs and cutoffs[0] < 1:
        raise ValueError(f"recall_at has {cutoffs[0]}, must be at least 1")
    query_rows = as_embeddings(embeddings)
    labels = as_labels(labels, len(query_rows))
    gallery_rows, of_gallery = query_rows, None
    if gallery is not None:
        gallery_rows = as_embeddings(gallery.embeddings, "gallery embeddings")
        gallery_labels = as_labels(gallery.labels, len(gallery_rows), "gallery labels")
        of_gallery = (gallery_labels, gallery.groups)
    range_search = RangeSearch(query_rows, gallery_rows, tile=gallery_tile)
    positions = range_search.positions(np.arange(len(gallery_rows)))
    matches = Matches(labels, groups, of_gallery, order=positions)
    names = [*map(recall_name, cutoffs), MAP_AT_R, R_PRECISION, RECIPROCAL_RANK]
    values = np.zeros((len(query_rows), len(names)))

    def measure(queries: np.ndarray) -> None:
        blocks = tied_blocks(range_search, matches, queries)
        values[queries] = expected(blocks, matches.num_matches[queries], cutoffs)

    queries = np.flatnonzero(matches.num_matches)
    tiles = [queries[places] for places in matches.query_tiles(queries, query_tile)]
    for_each_tile(strategy, tiles, measure, progress_name)
    values = merge_workers(strategy, values)
    return _aggregate(dict(zip(names, values.T, strict=True)), labels, matches, len(gallery_rows))


def _aggregate(
    values: Mapping[str, np.ndarray], labels: np.ndarray, matches: Matches, num_gallery: int
) -> RetrievalMetrics:
    """Averages metrics [Q] over the queries that have a match, and over each of their classes."""
    queries = np.flatnonzero(matches.num_matches)
    of_queries = {name: column[queries] for name, column in values.items()}
    class_labels, classes, counts = np.unique(
        labels[queries], return_inverse=True, return_counts=True
    )
    return RetrievalMetrics(
        mean={
            name: float(column.mean()) if len(column) else float("nan")
            for name, column in of_queries.items()
        },
        of_queries=of_queries,
        of_classes={
            name: np.bincount(classes, column, len(counts)) / counts
            for name, column in of_queries.items()
        },
        queries=queries,
        class_labels=class_labels,
        class_counts=counts,
        num_without_match=len(labels) - len(queries),
        num_gallery=num_gallery,
    )
