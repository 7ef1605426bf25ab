"""Exact nearest neighbours by squared Euclidean distance: a few queries among many rows."""

from __future__ import annotations

import faiss
import numpy as np

from trainer.retrieval.distances import distances
from tripletmill.errors import UsageError

SLACK = 16
"""Number of rows that FAISS proposes beyond the k that are wanted. With some to spare, a rounding
error of FAISS seldom decides which rows are found."""

LONGEST = 1.001
"""Largest accepted length of a vector: unit length, plus the rounding of the normalization."""

THREADS = faiss.omp_get_max_threads()  # one for each core, unless OMP_NUM_THREADS says otherwise
FEWEST_FOR_THREADS = 8  # queries; for fewer, threads cost more time than they save


def use_threads(num_queries: int) -> None:
    """Sets the number of threads of the FAISS calls that the calling thread makes next."""
    faiss.omp_set_num_threads(THREADS if num_queries >= FEWEST_FOR_THREADS else 1)


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
    """The k of the given rows that are nearest to a query, nearest first, and their distances.

    vectors: float32 [N, D].
    query: float32 [D].
    rows: [n] of `vectors`, n at least k.

    Distances are those of `trainer.retrieval.distances`. Rows of equal distance are ordered by row
    number.
    """
    distance = distances(query[None], vectors, np.zeros_like(rows), rows)
    order = np.lexsort((rows, distance))[:k]
    return rows[order], distance[order]


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of every query: int64 [Q, k], and their distances, float32 [Q, k].

    vectors: float32 [N, D], of unit length or zero; may be mapped from a file.
    queries: float32 [Q, D], of unit length or zero.
    k: 0 or more; clipped to N.

    The result is that of `closest` over all rows. FAISS computes in float32 and proposes rows. If
    its rounding may have left out a nearest row, all rows are searched.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    num, dim = vectors.shape
    k = min(k, num)
    rows = np.empty((len(queries), k), np.int64)
    nearest = np.empty((len(queries), k), np.float32)
    if not rows.size:
        return rows, nearest
    depth = min(k + SLACK, num)
    use_threads(len(queries))
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
