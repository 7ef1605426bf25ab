"""Recall@K, MAP@R, R-precision and mean reciprocal rank: of each query, each class, and in all."""

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
from trainer.retrieval.work_sharing import of_all, share

MAP_AT_R, R_PRECISION, RECIPROCAL_RANK = "map_at_r", "r_precision", "mean_reciprocal_rank"


def recall_name(k: int) -> str:
    """Name of Recall@K."""
    return f"recall_at_{k}"


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """What came of the queries that have a match, M of them.

    Names of metrics are recall_at_K, map_at_r, r_precision and mean_reciprocal_rank, each in
    [0, 1]; of one query the last is its reciprocal rank.

    Attributes:
      mean: name -> mean over these queries; NaN where there is none.
      of_queries: name -> [M], float64.
      of_classes: name -> [C], means over the queries of a class.
      queries: int64 [M], their row numbers, ascending.
      labels: [M], their labels.
      num_matches: int64 [M], R of each.
      class_labels: [C], labels of these queries, ascending.
      class_counts: int64 [C], how many of them have each.
      num_without_match: queries left out, since nothing in the gallery is a match.
      num_gallery: rows searched.
    """

    mean: Mapping[str, float]
    of_queries: Mapping[str, np.ndarray]
    of_classes: Mapping[str, np.ndarray]
    queries: np.ndarray
    labels: np.ndarray
    num_matches: np.ndarray
    class_labels: np.ndarray
    class_counts: np.ndarray
    num_without_match: int
    num_gallery: int

    @property
    def num_queries(self) -> int:
        """Queries with a match, M."""
        return len(self.queries)

    @property
    def num_classes(self) -> int:
        """Classes of these queries, C."""
        return len(self.class_labels)

    @property
    def map_at_r(self) -> float:
        """The metric to judge a model by."""
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
    what: str | None = None,
) -> RetrievalMetrics:
    """Recall@K, MAP@R, R-precision and mean reciprocal rank; docs/evaluation.md defines them.

    Rows are ranked by the distance of `trainer.retrieval.distances`. Where distances are equal,
    each metric is its expected value over all orders of the rows at that distance, so the order of
    rows does not matter.

    Args:
      embeddings: [Q, D] of the queries, array or tensor, of any floating type; read as float32.
      labels: integers [Q]; a match of a query is a row of the gallery with its label.
      groups: [Q], strings or integers, None or "" for a row of no group: rows of a query's label
        and of its group are left out of its ranking, as if they were not in the gallery.
      gallery: what is searched; by default the queries themselves, each query left out of its own
        ranking by its row number.
      recall_at: values of K, each at least 1; one past the gallery looks at all of it.
      strategy: whose devices share the queries; of several workers, all have to call. By default
        one device.
      query_tile: queries computed at a time, at most.
      gallery_tile: rows of the gallery computed at a time, at most.
      what: the embeddings are, for a progress line.

    Memory is O(query_tile x gallery_tile) beside a copy of the gallery and some numbers a query, at
    any sizes of classes up to a million rows, O(size) from there. Without a query that has a match
    the means are NaN and the counts tell why: no error.

    Raises:
      ValueError: shapes do not fit, labels are not integers, rows are not finite, K or a tile is
        below 1.
    """
    cutoffs = sorted(set(recall_at))
    if cutoffs and cutoffs[0] < 1:
        raise ValueError(f"recall_at has {cutoffs[0]}, must be at least 1")
    if query_tile < 1:
        raise ValueError(f"query_tile is {query_tile}, must be at least 1")
    sought = as_embeddings(embeddings)
    labels = as_labels(labels, len(sought))
    searched, of_gallery = sought, None
    if gallery is not None:
        searched = as_embeddings(gallery.embeddings, "gallery embeddings")
        of_gallery = (as_labels(gallery.labels, len(searched), "gallery labels"), gallery.groups)
    scan = RangeSearch(sought, searched, tile=gallery_tile)
    protocol = Matches(labels, groups, of_gallery, order=scan.place(np.arange(len(searched))))
    names = [*map(recall_name, cutoffs), MAP_AT_R, R_PRECISION, RECIPROCAL_RANK]
    values = np.zeros((len(sought), len(names)))

    def measure(queries: np.ndarray) -> None:
        blocks = tied_blocks(scan, sought, searched, protocol, queries)
        values[queries] = expected(blocks, protocol.num_matches[queries], cutoffs)

    queries = np.flatnonzero(protocol.num_matches)
    tiles = [queries[places] for places in protocol.tiles(queries, query_tile)]
    share(strategy, tiles, measure, what)
    values = of_all(strategy, values)[queries]
    class_labels, classes, counts = np.unique(
        labels[queries], return_inverse=True, return_counts=True
    )
    by_class = [np.bincount(classes, of, len(counts)) / counts for of in values.T]
    return RetrievalMetrics(
        mean={
            name: float(of.mean()) if len(of) else float("nan")
            for name, of in zip(names, values.T, strict=True)
        },
        of_queries=dict(zip(names, values.T, strict=True)),
        of_classes=dict(zip(names, by_class, strict=True)),
        queries=queries,
        labels=labels[queries],
        num_matches=protocol.num_matches[queries],
        class_labels=class_labels,
        class_counts=counts,
        num_without_match=len(sought) - len(queries),
        num_gallery=len(searched),
    )
