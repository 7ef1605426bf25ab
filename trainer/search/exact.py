"""Exact nearest neighbours by squared Euclidean distance, of some queries among many rows."""

from __future__ import annotations

import os

import faiss
import numpy as np

from trainer.retrieval.distances import distances
from tripletmill.errors import UsageError

SLACK = 16
"""Rows looked at beyond those wanted, so that rounding seldom decides who is among them."""

LONGEST = 1.001
"""Length of a vector, at most: unit length, and the rounding of whoever made it so."""

ALONE = 8  # queries; for fewer, starting threads costs more than they bring


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int, *, queries: int) -> None:
    """How many threads FAISS takes in what this thread calls next."""
    faiss.omp_set_num_threads(threads if queries >= ALONE else 1)


def require_unit_length(vectors: np.ndarray, what: str) -> None:
    """Raises UsageError unless every row of [N, D] is finite and no longer than LONGEST."""
    bad = np.count_nonzero(~(np.einsum("nd,nd->n", vectors, vectors) <= LONGEST**2))
    if bad:
        raise UsageError(
            f"{what}: {bad:,} of {len(vectors):,} embeddings are not of unit length; embed again"
            " with an exported model"
        )


def closest(
    vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those k of the rows that are nearest to a query, nearest first, and their distances.

    vectors: float32 [N, D].
    query: float32 [D].
    rows: [n] of `vectors`, n at least k.

    Distances are those of `trainer.retrieval.distances`. Rows of equal distance are ordered by row
    number.
    """
    distance = distances(query[None], vectors, np.zeros_like(rows), rows)
    order = np.lexsort((rows, distance))[:k]
    return rows[order], distance[order]


def exact(
    vectors: np.ndarray, queries: np.ndarray, k: int, *, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of every query: int64 [Q, k], and their distances, float32 [Q, k].

    vectors: float32 [N, D], of unit length or zero; may be mapped from a file.
    queries: float32 [Q, D], the same.
    k: 0 or more; clipped to N.

    Order and distances are those of `closest` over all rows. FAISS, which computes in float32, says
    which rows to look at; where its rounding could have left one out, all rows are gone through.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    num, dim = vectors.shape
    k = min(k, num)
    rows = np.empty((len(queries), k), np.int64)
    nearest = np.empty((len(queries), k), np.float32)
    if not rows.size:
        return rows, nearest
    depth = min(k + SLACK, num)
    use_threads(threads, queries=len(queries))
    seen, found = faiss.knn(queries, vectors, depth)
    # |q|^2 + |x|^2 - 2 q.x is a sum of D + 2 products, of total size (|q| + |x|)^2 at most.
    rounding = (dim + 2) * np.finfo(np.float32).eps * (2 * LONGEST) ** 2
    for place, query in enumerate(queries):
        rows[place], nearest[place] = closest(vectors, query, found[place], k)
        within = nearest[place, -1] + rounding
        if depth < num and seen[place, -1] <= within:
            squares = np.einsum("nd,nd->n", vectors, vectors)
            possible = np.flatnonzero(squares - 2 * (vectors @ query) + query @ query <= within)
            rows[place], nearest[place] = closest(vectors, query, possible, k)
    return rows, nearest
