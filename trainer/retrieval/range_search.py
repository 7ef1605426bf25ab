"""A fast search for what lies within a distance, so that few distances have to be computed.

A distance (`trainer.retrieval.distances`) takes a hundred times as long as a number of a matmul. A
float32 matmul, whose error is bounded, leaves out what lies outside the range in question, which is
nearly all: half the time of a float64 one, and GPUs have it at full speed.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from trainer.retrieval.distances import CHUNK, all_distances, distances

_UNIT = 2.0**-24  # rounding to float32 is off by at most this share,
_LEAST = 2.0**-126  # or by less than this, where results are flushed to zero
_SMALLEST, _GREATEST = 2.0**-149, float(np.finfo(np.float32).max)
_DENSE = 0.1  # share of a tile from where on it is faster to compute all of its distances


@dataclasses.dataclass(frozen=True)
class Within:
    """Gallery rows around some queries.

    Attributes:
      nearer: int64 [q], how many rows are certainly nearer than the range.
      query: int64 [n], places among the queries.
      row: int64 [n], rows of the gallery; with `query`, every pair that may be in the range.
    """

    nearer: np.ndarray
    query: np.ndarray
    row: np.ndarray


class RangeSearch:
    """Finds the gallery rows whose distance to queries may lie in a range, none missing.

    The rows are moved to their common centre and scaled by a power of two, which changes no order,
    and rounded to float32. One matmul of [-2q, |q|^2, 1] and [x, 1, |x|^2] then gives |q - x|^2
    with an error of at most (D + 12) u / (1 - (D + 12) u) (|q| + |x|)^2, u = 2^-24, in any order of
    summation: D + 2 terms of magnitudes that add up to (|q| + |x|)^2 or less (Higham: Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1), and the rounding of rows, norms, and the
    distances that are compared with.

    The gallery is looked at in a fixed random order, so that queries soon have a tight range
    whatever the order of rows. Beside the embeddings it takes one copy of the gallery.

    Args:
      queries: [Q, D] float32, finite.
      gallery: [N, D] float32, finite.
      tile: gallery rows at a time; the first tiles are smaller.
    """

    def __init__(self, queries: np.ndarray, gallery: np.ndarray, *, tile: int) -> None:
        if tile < 1:
            raise ValueError(f"gallery_tile is {tile}, must be at least 1")
        size, dim = gallery.shape
        if queries.shape[1] != dim:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery {dim}")
        self._queries, self._gallery = queries, gallery
        self._centre = gallery.mean(axis=0, dtype=np.float64) if size else np.zeros(dim)
        reach = max(
            (float(abs(x)) for of in (queries, gallery) if of.size for x in _ends(of)), default=0.0
        )
        self._scale = 2.0 ** -int(np.frexp(reach)[1])
        share = (dim + 12) * _UNIT
        self._error = share / (1 - share)
        self._order = np.random.default_rng(0).permutation(size)
        self._place = np.empty_like(self._order)
        self._place[self._order] = np.arange(size)
        self._right = np.empty((size, dim + 2), np.float32)
        step = max(1, CHUNK // max(1, dim))
        for start in range(0, size, step):
            rows, norms = self._moved(gallery[self._order[start : start + step]])
            self._right[start : start + step] = np.column_stack([rows, np.ones_like(norms), norms])
        self.tiles = _tiles(size, tile)
        self._lengths = [
            float(np.sqrt(self._right[tile, -1].max(initial=0), dtype=np.float64))
            for tile in self.tiles
        ]

    def place(self, rows: np.ndarray) -> np.ndarray:
        """[n] when rows [n] of the gallery are looked at: place p is in the tile that has p."""
        return self._place[rows]

    def distances(self, queries: np.ndarray, tile: int, near: Within) -> np.ndarray:
        """Those of the pairs that `within` found, float32 [n]; queries [q] by their row numbers."""
        of = self.tiles[tile]
        if len(near.row) < _DENSE * len(queries) * (of.stop - of.start):
            return distances(self._queries, self._gallery, queries[near.query], near.row)
        every = all_distances(self._queries[queries], self._gallery[self._order[of]])
        return every[near.query, self._place[near.row] - of.start]

    def query_tile(self, queries: np.ndarray) -> "QueryTile":
        """Queries [q] by their row numbers, on the current device."""
        rows, norms = self._moved(self._queries[queries])
        left = np.column_stack([-2 * rows, norms, np.ones_like(norms)])
        return QueryTile(tf.constant(left), np.sqrt(norms[:, 0], dtype=np.float64))

    def within(
        self,
        queries: "QueryTile",
        tile: int,
        least: np.ndarray | None,
        most: np.ndarray,
        left_out: np.ndarray,
    ) -> Within:
        """What lies between two distances.

        Args:
          queries: of `query_tile`.
          tile: number of the gallery's.
          least: float32 [q]; None: 0.
          most: float32 [q], not below it.
          left_out: int64 [n, 2], queries and places of rows in this tile that do not count.
        """
        of = self.tiles[tile]
        margin = (
            self._error * (queries.lengths + self._lengths[tile]) ** 2
            + 2 * _LEAST * (self._right.shape[1])
        )
        nearer, found = _select(
            queries.left,
            tf.constant(self._right[of]),
            self._low(least, margin),
            self._high(most, margin),
            tf.constant(left_out - [0, of.start]),
        )
        query, place = found.numpy().T
        return Within(nearer.numpy().astype(np.int64), query, self._order[place + of.start])

    # What is less than `_low` is certainly nearer than the distance, what is more than `_high`
    # farther. The margin holds the rounding of distances to float32 too, but for the smallest.

    def _low(self, distance: np.ndarray | None, margin: np.ndarray) -> np.ndarray:
        if distance is None:
            return np.full(len(margin), -np.inf, np.float32)
        least = np.minimum(distance.astype(np.float64), _GREATEST) - _SMALLEST
        return _rounded(least * self._scale**2 - margin, -np.inf)

    def _high(self, distance: np.ndarray, margin: np.ndarray) -> np.ndarray:
        most = distance.astype(np.float64) + _SMALLEST
        return _rounded(most * self._scale**2 + margin, np.inf)

    def _moved(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = ((rows - self._centre) * self._scale).astype(np.float32)
        norms = np.square(moved, dtype=np.float64).sum(axis=1, keepdims=True)
        return moved, norms.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class QueryTile:
    """Queries on a device.

    Attributes:
      left: float32 [q, D + 2].
      lengths: float64 [q].
    """

    left: tf.Tensor
    lengths: np.ndarray


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([None], tf.float32),
        tf.TensorSpec([None], tf.float32),
        tf.TensorSpec([None, 2], tf.int64),
    ],
    autograph=False,
)
def _select(
    left: tf.Tensor, right: tf.Tensor, low: tf.Tensor, high: tf.Tensor, left_out: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    found = tf.matmul(left, right, transpose_b=True)
    nothing = tf.fill(tf.shape(left_out)[:1], np.float32(np.nan))  # neither less nor more
    found = tf.tensor_scatter_nd_update(found, left_out, nothing)
    nearer = found < low[:, None]
    within = (found <= high[:, None]) & ~nearer
    return tf.reduce_sum(tf.cast(nearer, tf.int32), axis=1), tf.where(within)


def _ends(array: np.ndarray) -> tuple[float, float]:
    return array.min(), array.max()


def _rounded(values: np.ndarray, towards: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.nextafter(values.astype(np.float32), np.float32(towards))


def _tiles(size: int, tile: int) -> list[slice]:
    """0 to size; the first is small, since little is known of the range before it."""
    tiles, start, length = [], 0, min(64, tile)
    while start < size:
        tiles.append(slice(start, min(size, start + length)))
        start, length = start + length, min(tile, start + length)
    return tiles
