"""Exact nearest neighbours and the retrieval metrics Recall@K, R-precision and MAP@R."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class Neighbours(NamedTuple):
    """The nearest other rows of every query, nearest first.

    rows: int32 [Q, k], row numbers in [0, N).
    distances: float32 [Q, k], squared Euclidean, in [0, inf], ascending along a row.
    """

    rows: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries that have a match, each in [0, 1]; NaN where there is no such query.

    recall: K -> share of queries with a match among their K nearest.
    map_at_r, r_precision: see `retrieval_metrics`.
    num_queries: queries counted, those with another image of their class.
    num_without_match: rows left out as queries (alone in their class), still in the gallery.
    num_classes: distinct labels over all rows, lone ones included.
    map_at_r_by_class: label -> mean over that class's queries, for classes of two rows and more.
    """

    recall: dict[int, float]
    map_at_r: float
    r_precision: float
    num_queries: int
    num_without_match: int
    num_classes: int
    map_at_r_by_class: dict[int, float]


def nearest_neighbours(
    embeddings: Any, k: int, *, queries: np.ndarray | None = None, tile: int = 1024
) -> Neighbours:
    """The k nearest other rows of each query, exactly, by squared Euclidean distance.

    embeddings: [N, D], array or tensor, of any floating type; read as float32.
    k: at least 1; clipped to N - 1.
    queries: row numbers [Q]; by default every row, Q = N.
    tile: queries computed at a time; memory is O(tile x N), the result does not depend on it.

    A query is left out of its own neighbours by its row number, so exact copies of it stay in, at
    distance 0. Ties, equal in float32, are ordered by row number. Distances are computed in
    float64; one too small to tell from rounding (two rows nearer than about 4e-7 of their length,
    at D = 128) counts as 0, one past float32's range as inf.
    The result is [Q, k]; with 0 or 1 rows [Q, 0].
    Raises ValueError on another rank, on rows that are not finite, on k or tile below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1")
    gallery = _Gallery(embeddings, tile)
    k = min(k, max(gallery.size - 1, 0))
    if queries is None:
        queries = np.arange(gallery.size)
    rows = np.empty((len(queries), k), np.int32)
    distances = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), tile):
        part = slice(start, start + tile)
        rows[part], distances[part] = gallery.nearest(queries[part], k)
    return Neighbours(rows, distances)


def retrieval_metrics(
    embeddings: Any,
    labels: Any,
    *,
    recall_at: Iterable[int] = (1, 2, 4, 8),
    tile: int = 1024,
) -> RetrievalMetrics:
    """Recall@K, R-precision and MAP@R, every row a query against all others.

    embeddings: [N, D], as for `nearest_neighbours`, whose order and ties these metrics use.
    labels: integers [N].
    recall_at: values of K, each at least 1; one past N - 1 looks at all other rows.

    For a query with R other images of its class: R-precision is the share of matches among its R
    nearest, MAP@R is (1 / R) * sum over i = 1..R of P(i) * rel(i), where P(i) is the precision
    among the i nearest and rel(i) is 1 if the i-th is a match, else 0. Queries with R = 0 are left
    out and counted. Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020,
    section 2.3. Where classes differ in size, R differs by query.

    Memory is O(tile x N) at any class sizes. Where no query has a match (no rows, or every class of
    one row) the means are NaN and the counts tell why: no error.
    Raises ValueError on shapes that do not fit, labels that are not integers, rows that are not
    finite, K or tile below 1.
    """
    cutoffs = sorted(set(recall_at))
    if cutoffs and cutoffs[0] < 1:
        raise ValueError(f"recall_at has {cutoffs[0]}, must be at least 1")
    gallery = _Gallery(embeddings, tile)
    labels = np.asarray(labels)
    if labels.shape != (gallery.size,):
        raise ValueError(f"labels are {list(labels.shape)}, must be [{gallery.size}]")
    if gallery.size and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}, must be integers")

    names, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    matches = counts[classes] - 1
    # By R, so that a tile looks no deeper than its own queries need: one huge class among small
    # ones costs its own queries only.
    queries = np.argsort(matches, kind="stable")[np.count_nonzero(matches == 0) :].astype(np.int32)

    found = dict.fromkeys(cutoffs, 0)
    r_precision = np.empty(len(queries))
    map_at_r = np.empty(len(queries))
    for start in range(0, len(queries), tile):
        part = slice(start, start + tile)
        r = matches[queries[part], None]
        depth = min(max([*cutoffs, int(r.max())]), gallery.size - 1)
        rows, _ = gallery.nearest(queries[part], depth)
        hit = classes[rows] == classes[queries[part], None]
        for cutoff in cutoffs:
            found[cutoff] += int(np.count_nonzero(hit[:, :cutoff].any(axis=1)))
        rank = np.arange(1, depth + 1)
        hit &= rank <= r
        r_precision[part] = hit.sum(axis=1) / r[:, 0]
        map_at_r[part] = (hit * np.cumsum(hit, axis=1) / rank).sum(axis=1) / r[:, 0]

    num = len(queries)
    by_class = np.bincount(classes[queries], weights=map_at_r, minlength=len(names))
    return RetrievalMetrics(
        recall={cutoff: found[cutoff] / num if num else float("nan") for cutoff in cutoffs},
        map_at_r=float(map_at_r.mean()) if num else float("nan"),
        r_precision=float(r_precision.mean()) if num else float("nan"),
        num_queries=num,
        num_without_match=gallery.size - num,
        num_classes=len(names),
        map_at_r_by_class={
            int(name): float(total / count)
            for name, total, count in zip(names, by_class, counts, strict=True)
            if count > 1
        },
    )


class _Gallery:
    """All rows [N, D], laid out so that one matmul gives a tile's negated squared distances."""

    def __init__(self, embeddings: Any, tile: int) -> None:
        if tile < 1:
            raise ValueError(f"tile is {tile}, must be at least 1")
        with np.errstate(over="ignore"):  # float64 past float32's range: inf, reported below
            rows = np.asarray(embeddings).astype(np.float32)
        if rows.ndim != 2:
            raise ValueError(f"embeddings are {list(rows.shape)}, must be [N, D]")
        bad = np.count_nonzero(~np.isfinite(rows).all(axis=1))
        if bad:
            raise ValueError(f"{bad} of {len(rows)} embeddings are not finite in float32")
        self.size = len(rows)
        # float64 because |q|^2 + |x|^2 - 2 q.x cancels for near neighbours, and because a float32
        # matmul is TF32 on many GPUs: the order of neighbours would depend on the device.
        wide = rows.astype(np.float64)
        norms = np.sum(wide * wide, axis=1, keepdims=True)
        ones = np.ones_like(norms)
        self._left = np.concatenate([2 * wide, -norms, -ones], axis=1)
        self._right = tf.constant(np.concatenate([wide, ones, norms], axis=1))
        # Bound on the rounding of a copy's distance: D + 2 products of total size 4 |q|^2, and
        # the norms' own rounding.
        rounding = 4 * self._left.shape[1] * np.finfo(np.float64).eps
        lowest = np.finfo(np.float32).min
        self._zero = np.maximum(-rounding * norms, lowest).astype(np.float32)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """int32 rows [n, k] and float32 distances [n, k] of the queries [n]; k at most N - 1."""
        if k < 1:
            return np.empty((len(queries), 0), np.int32), np.empty((len(queries), 0), np.float32)
        scores = tf.cast(tf.matmul(self._left[queries], self._right, transpose_b=True), tf.float32)
        scores = tf.where(scores >= self._zero[queries], 0.0, scores)
        # top_k puts the lower row first among equals. The query itself scores exactly 0, the best
        # there is: it is among the first k + 1 unless k + 1 copies with lower rows are.
        values, indices = tf.math.top_k(scores, k + 1)
        rows, scores = indices.numpy(), values.numpy()
        itself = rows == queries[:, None]
        place = np.where(itself.any(axis=1), itself.argmax(axis=1), k)[:, None]
        before = np.arange(k) < place
        return (
            np.where(before, rows[:, :-1], rows[:, 1:]),
            np.abs(np.where(before, scores[:, :-1], scores[:, 1:])),
        )
