"""The distance that everything is ranked by.

It is the sum of the squared differences of two rows, in float64, rounded to float32. Each pair's is
computed by itself, so it depends on nothing but the two rows: not on tiles, devices, or the order
of rows. Copies are at 0, and near-duplicates far from the origin keep their order.
"""

from typing import Any

import numpy as np

CHUNK = 2**17  # numbers: what fits in a core's cache
_UNIT = 2.0**-53  # rounding to float64 is off by at most this share


def as_embeddings(embeddings: Any, what: str = "embeddings") -> np.ndarray:
    """[N, D] float32 of an array or tensor of any floating type.

    Raises:
      ValueError: it is of another rank, or has rows that are not finite.
    """
    with np.errstate(over="ignore"):  # float64 past float32's range: inf, reported below
        rows = np.asarray(embeddings).astype(np.float32, copy=False)
    if rows.ndim != 2:
        raise ValueError(f"{what} are {list(rows.shape)}, must be [N, D]")
    bad = np.count_nonzero(~np.isfinite(rows).all(axis=1))
    if bad:
        raise ValueError(f"{bad} of {len(rows)} {what} are not finite in float32")
    return np.ascontiguousarray(rows)


def distances(left: np.ndarray, right: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Distances float32 [n], 0 to inf, of rows i [n] of left [N, D] to rows j [n] of right."""
    found = np.empty(len(i), np.float32)
    chunk = max(1, CHUNK // max(1, left.shape[1]))
    with np.errstate(over="ignore"):
        for start in range(0, len(i), chunk):
            part = slice(start, start + chunk)
            difference = np.subtract(left[i[part]], right[j[part]], dtype=np.float64)
            np.square(difference, out=difference)
            found[part] = difference.sum(axis=1)
    return found


def all_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distances float32 [n, m] of all rows of left [n, D] to all of right [m, D].

    A float64 matmul is off by so little that nearly all round to the same float32 all the same;
    those that may not are computed one by one. That is some twenty times faster.
    """
    if not left.size or not right.size:
        return np.zeros((len(left), len(right)), np.float32)
    centre = right.mean(axis=0, dtype=np.float64)
    q, x = left - centre, right - centre
    q_norms, x_norms = (np.square(of).sum(axis=1) for of in (q, x))
    found = q_norms[:, None] + x_norms - 2 * (q @ x.T)
    error = (
        4 * (left.shape[1] + 10) * _UNIT * (np.sqrt(q_norms) + np.sqrt(x_norms.max()))[:, None] ** 2
    )
    with np.errstate(over="ignore"):
        low, high = (found - error).astype(np.float32), (found + error).astype(np.float32)
    i, j = np.nonzero(low != high)
    high[i, j] = distances(left, right, i, j)
    return high


def ordered(query: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """int64 [n] in the order of (query, distance); the query is 32 bits to the left in it."""
    # The bits of float32 numbers from 0 to inf are in their order.
    return (query.astype(np.int64) << 32) | distance.view(np.uint32)
