"""A fast search for the rows in a range of distances, so that few distances have to be computed.

A distance (`trainer.retrieval.distances`) takes about a hundred times as long as one number of a
matmul. A float32 matmul, whose error has a known bound, rules out the rows that certainly lie
outside the range, which are nearly all rows. It takes half the time of a float64 matmul, and GPUs
run it at full speed.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.retrieval.distances import CHUNK, all_distances, distances

_UNIT = 2.0**-24  # Largest relative error of rounding to float32.
_MIN_NORMAL = 2.0**-126  # Largest absolute error where small results are flushed to zero.
_MIN_SUBNORMAL, _MAX_FLOAT = 2.0**-149, float(np.finfo(np.float32).max)
_DENSE = 0.1  # Share of candidates in a tile from which computing the whole tile is faster.


class Candidates(NamedTuple):
    """Gallery rows that may lie in the range of distances of some queries.

    Attributes:
      nearer: int64 [q], number of rows that are certainly nearer than the range.
      query: int64 [n], places among the queries.
      row: int64 [n], rows of the gallery. The pairs (query, row) hold every pair that may be in the
        range.
    """

    nearer: np.ndarray
    query: np.ndarray
    row: np.ndarray


class RangeSearch:
    """Finds the gallery rows whose distance to queries may lie in a range; it misses none.

    The rows are moved to the gallery's centre, scaled by a power of two, which changes no order,
    and rounded to float32. One matmul of [-2q, |q|^2, 1] and [x, 1, |x|^2] then gives |q - x|^2.
    Its error is at most (D + 12) u / (1 - (D + 12) u) (|q| + |x|)^2 with u = 2^-24, in any order of
    summation: D + 2 terms are summed whose magnitudes add up to (|q| + |x|)^2 or less (Higham:
    Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), and the rows, the norms and
    the distances that are compared are rounded.

    The gallery is searched in a fixed random order, so that the range of each query becomes narrow
    early, whatever the order of the rows. Memory is one copy of the gallery beside the embeddings.

    Args:
      queries: [Q, D] float32, finite.
      gallery: [N, D] float32, finite.
      tile: gallery rows at a time; the first tiles are smaller.

    Raises:
      ValueError: `tile` is below 1, or the numbers of dimensions differ.

    Attributes:
      queries: the queries.
      gallery: the gallery.
      tiles: slices of positions in the order of the search.
    """

    def __init__(self, queries: np.ndarray, gallery: np.ndarray, *, tile: int) -> None:
        if tile < 1:  # it would search without end
            raise ValueError(f"gallery_tile is {tile}, must be at least 1")
        size, dim = gallery.shape
        if queries.shape[1] != dim:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery {dim}")
        self.queries, self.gallery = queries, gallery
        self._centre = gallery.mean(axis=0, dtype=np.float64) if size else np.zeros(dim)
        largest = max(
            float(max(rows.max(initial=0), -rows.min(initial=0))) for rows in (queries, gallery)
        )
        self._scale = 2.0 ** -int(np.frexp(largest)[1])
        unit_sum = (dim + 12) * _UNIT
        self._relative_error = unit_sum / (1 - unit_sum)
        self._order = np.random.default_rng(0).permutation(size)
        self._position = np.empty_like(self._order)
        self._position[self._order] = np.arange(size)
        self._right = np.empty((size, dim + 2), np.float32)
        step = max(1, CHUNK // max(1, dim))
        for start in range(0, size, step):
            rows, norms = self._rescaled(gallery[self._order[start : start + step]])
            self._right[start : start + step] = np.column_stack([rows, np.ones_like(norms), norms])
        self.tiles = _tiles(size, tile)
        self._max_lengths = [
            float(np.sqrt(self._right[part, -1].max(initial=0), dtype=np.float64))
            for part in self.tiles
        ]

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Positions [n] of gallery rows [n] in the order of the search, which `tiles` slices."""
        return self._position[rows]

    def distances(self, queries: np.ndarray, tile: int, candidates: Candidates) -> np.ndarray:
        """Distances float32 [n] of the pairs that `within` found.

        Args:
          queries: row numbers [q].
          tile: number of the gallery tile.
          candidates: result of `within` for these queries and this tile.
        """
        part = self.tiles[tile]
        if len(candidates.row) < _DENSE * len(queries) * (part.stop - part.start):
            return distances(self.queries, self.gallery, queries[candidates.query], candidates.row)
        whole_tile = all_distances(self.queries[queries], self.gallery[self._order[part]])
        return whole_tile[candidates.query, self._position[candidates.row] - part.start]

    def query_tile(self, queries: np.ndarray) -> "QueryTile":
        """Puts queries, by their row numbers [q], on the current device."""
        rows, norms = self._rescaled(self.queries[queries])
        left = np.column_stack([-2 * rows, norms, np.ones_like(norms)])
        return QueryTile(tf.constant(left), np.sqrt(norms[:, 0], dtype=np.float64))

    def within(
        self,
        queries: "QueryTile",
        tile: int,
        min_distance: np.ndarray,
        max_distance: np.ndarray,
        left_out: np.ndarray,
    ) -> Candidates:
        """Finds the rows of a gallery tile that may lie between two distances.

        Args:
          queries: result of `query_tile`, q queries.
          tile: number of the gallery tile.
          min_distance: float32 [q].
          max_distance: float32 [q], not below min_distance.
          left_out: int64 [n, 2], pairs of a query and of a position in this tile that do not count.
        """
        part = self.tiles[tile]
        margin = (
            self._relative_error * (queries.lengths + self._max_lengths[tile]) ** 2
            + 2 * _MIN_NORMAL * (self._right.shape[1])
        )
        # A product below the lower bound is certainly nearer than the range, and one above the
        # upper bound farther. The margin also covers the rounding of distances to float32, except
        # for the smallest numbers.
        lowest = np.minimum(min_distance.astype(np.float64), _MAX_FLOAT) - _MIN_SUBNORMAL
        highest = max_distance.astype(np.float64) + _MIN_SUBNORMAL
        nearer, pairs = _select(
            queries.left,
            tf.constant(self._right[part]),
            _rounded(lowest * self._scale**2 - margin, -np.inf),
            _rounded(highest * self._scale**2 + margin, np.inf),
            tf.constant(left_out - [0, part.start]),
        )
        query, place = pairs.numpy().T
        return Candidates(nearer.numpy().astype(np.int64), query, self._order[place + part.start])

    def _rescaled(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centred and scaled rows float32 [n, D], and their squared lengths [n, 1]."""
        rescaled = ((rows - self._centre) * self._scale).astype(np.float32)
        norms = np.square(rescaled, dtype=np.float64).sum(axis=1, keepdims=True)
        return rescaled, norms.astype(np.float32)


class QueryTile(NamedTuple):
    """Queries on a device.

    Attributes:
      left: float32 [q, D + 2], the left factor of the matmul.
      lengths: float64 [q], Euclidean lengths of the centred and scaled queries.
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
    """Counts the products [q, m] below `low` [q], and finds (query, row) of those up to `high`."""
    products = tf.matmul(left, right, transpose_b=True)
    nan = tf.fill(tf.shape(left_out)[:1], np.float32(np.nan))  # Neither below nor above a bound.
    products = tf.tensor_scatter_nd_update(products, left_out, nan)
    nearer = products < low[:, None]
    within = (products <= high[:, None]) & ~nearer
    return tf.reduce_sum(tf.cast(nearer, tf.int32), axis=1), tf.where(within)


def _rounded(values: np.ndarray, towards: float) -> np.ndarray:
    """float64 values as float32: rounded, then moved one step towards -inf or inf."""
    with np.errstate(over="ignore"):
        return np.nextafter(values.astype(np.float32), np.float32(towards))


def _tiles(size: int, tile: int) -> list[slice]:
    """Slices from 0 to size. The first tiles are small, since ranges are still wide then."""
    tiles, start, length = [], 0, min(64, tile)
    while start < size:
        tiles.append(slice(start, min(size, start + length)))
        start, length = start + length, min(tile, start + length)
    return tiles
