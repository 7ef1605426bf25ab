"""The distance by which rows are ranked.

The distance is the squared Euclidean distance: the sum of the squared differences of two rows,
computed in float64 and rounded once to float32. Each pair is computed on its own, so its distance
depends only on its two rows, and not on tile sizes, devices or the order of rows. Copies have
distance 0, and near-duplicates far from the origin keep their order.
"""

from typing import Any

import numpy as np

CHUNK = 2**17  # Numbers that fit in the cache of a core.
_UNIT = 2.0**-53  # Largest relative error of rounding to float64.


def as_embeddings(embeddings: Any, name: str = "embeddings") -> np.ndarray:
    """Converts an array or tensor of any floating type to float32 [N, D].

    Args:
      embeddings: [N, D].
      name: what error messages call the array.

    Raises:
      ValueError: the array is not of rank 2, or some rows are not finite in float32.
    """
    with np.errstate(over="ignore"):  # float64 beyond float32's range becomes inf: reported below.
        rows = np.asarray(embeddings).astype(np.float32, copy=False)
    if rows.ndim != 2:
        raise ValueError(f"{name} are {list(rows.shape)}, must be [N, D]")
    num_bad = np.count_nonzero(~np.isfinite(rows).all(axis=1))
    if num_bad:
        raise ValueError(f"{num_bad} of {len(rows)} {name} are not finite in float32")
    return np.ascontiguousarray(rows)


def distances(left: np.ndarray, right: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Distances of pairs of rows.

    Args:
      left: float32 [N, D].
      right: float32 [M, D].
      i: rows [n] of `left`.
      j: rows [n] of `right`.

    Returns:
      float32 [n], 0 to inf.
    """
    result = np.empty(len(i), np.float32)
    chunk = max(1, CHUNK // max(1, left.shape[1]))
    with np.errstate(over="ignore"):
        for start in range(0, len(i), chunk):
            part = slice(start, start + chunk)
            difference = np.subtract(left[i[part]], right[j[part]], dtype=np.float64)
            np.square(difference, out=difference)
            result[part] = difference.sum(axis=1)
    return result


def all_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distances float32 [n, m] of each row of left [n, D] to each row of right [m, D].

    The result equals that of `distances`, and takes about a twentieth of the time. A float64
    matmul gives each distance with a bounded error, and nearly all of them round to one float32
    number whatever the error is. The few others are computed pair by pair.
    """
    if not left.size or not right.size:
        return np.zeros((len(left), len(right)), np.float32)
    centre = right.mean(axis=0, dtype=np.float64)
    q, x = left - centre, right - centre
    q_norms, x_norms = (np.square(rows).sum(axis=1) for rows in (q, x))
    approximate = q_norms[:, None] + x_norms - 2 * (q @ x.T)
    error = (
        4 * (left.shape[1] + 10) * _UNIT * (np.sqrt(q_norms) + np.sqrt(x_norms.max()))[:, None] ** 2
    )
    with np.errstate(over="ignore"):
        low = (approximate - error).astype(np.float32)
        high = (approximate + error).astype(np.float32)
    i, j = np.nonzero(low != high)
    high[i, j] = distances(left, right, i, j)
    return high


def sort_keys(query: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """int64 [n] keys that sort by query [n], then by distance float32 [n].

    The upper 32 bits of a key hold the query, the lower ones the distance.
    """
    # The bits of float32 numbers from 0 to inf, read as integers, sort like the numbers.
    return (query.astype(np.int64) << 32) | distance.view(np.uint32)
