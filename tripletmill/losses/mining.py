"""The miner: it finds positives and negatives for the anchors of a batch, without gradients.

A positive is a row of the anchor's class, a negative is a row of another class. The batch is
mined in tiles. A tile consists of T anchors and their comparable distances to all B candidates.

A search for negatives first makes one pass over the [T, B] numbers. It keeps the least number of
each lane; a lane consists of the candidates whose rows are equal modulo LANES. Then it looks at the
winning lane alone. XLA fuses and vectorises this pass, which it does not do for an argmin.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tripletmill.losses.distances import ComparableDistances

LANES = 64
INFINITY = float("inf")

# Maps distances [T, ?, ?] and is_negative, bool [T, ?, ?], to the numbers that a search minimises.
SearchKey = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def axis_size(x: tf.Tensor, axis: int = 0) -> int | tf.Tensor:
    """The size of an axis.

    It is an int if it is known at tracing time, so that shapes computed from it are known too.
    """
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


@dataclasses.dataclass(frozen=True)
class ClassIndex:
    """Tells for each row of a batch which rows are of its class.

    Attributes:
      rows_by_class: [B] the rows, sorted by class.
      class_id: [B] the number of each row's class, from 0 on in the order of the labels.
      class_start: [B] where the class of each row begins in rows_by_class.
      class_size: [B] the number of rows in the class of each row.
      rank: [B] the position of each row within its class.
    """

    rows_by_class: tf.Tensor
    class_id: tf.Tensor
    class_start: tf.Tensor
    class_size: tf.Tensor
    rank: tf.Tensor


def index_classes(labels: tf.Tensor) -> ClassIndex:
    """Groups the rows of a batch by their labels, [B] int32 or int64."""
    rows_by_class = tf.argsort(labels, stable=True)
    sorted_labels = tf.gather(labels, rows_by_class)
    previous = tf.concat([sorted_labels[:1], sorted_labels[:-1]], 0)
    class_id = tf.cumsum(tf.cast(sorted_labels != previous, tf.int32))
    size = tf.math.unsorted_segment_sum(tf.ones_like(class_id), class_id, tf.shape(labels)[0])
    start = tf.cumsum(size, exclusive=True)
    place = tf.math.invert_permutation(rows_by_class)
    class_id = tf.gather(class_id, place)
    start = tf.gather(start, class_id)
    return ClassIndex(rows_by_class, class_id, start, tf.gather(size, class_id), place - start)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The rows of a batch, ready to be searched. Padding makes their number a multiple of LANES.

    Attributes:
      classes: of the candidates without the padding.
      distances: of the candidates with the padding, whose offset is infinite.
      class_id: [B] of each candidate with the padding, for which it is -1.
    """

    classes: ClassIndex
    distances: ComparableDistances
    class_id: tf.Tensor


def make_candidates(labels: tf.Tensor, distances: ComparableDistances) -> Candidates:
    """Prepares the rows of a batch, with labels [B], to be searched."""
    classes = index_classes(labels)
    num_padding = -axis_size(labels) % LANES
    # The padding repeats the first row. Zeros would not do: a callable metric may be undefined
    # there.
    padding = tf.broadcast_to(distances.vectors[:1], [num_padding, axis_size(distances.vectors, 1)])
    padded = dataclasses.replace(
        distances,
        vectors=tf.concat([distances.vectors, padding], 0),
        offset=tf.pad(distances.offset, [[0, num_padding]], constant_values=INFINITY),
    )
    class_id = tf.pad(classes.class_id, [[0, num_padding]], constant_values=-1)
    return Candidates(classes, padded, class_id)


class AnchorTile:
    """Some anchors and their distances to all candidates.

    All distances here are comparable ones, see `tripletmill.losses.distances.comparable`.

    Attributes:
      rows: [T] the anchors, as rows among the candidates.
      num_positives: [T] how many positives each anchor has.
    """

    def __init__(self, candidates: Candidates, rows: tf.Tensor) -> None:
        self._candidates = candidates
        self.rows = rows
        self._class_id = tf.gather(candidates.classes.class_id, rows)
        self._class_start = tf.gather(candidates.classes.class_start, rows)
        self._class_size = tf.gather(candidates.classes.class_size, rows)
        self._rank = tf.gather(candidates.classes.rank, rows)
        self.num_positives = self._class_size - 1
        self._products = candidates.distances.products(rows)
        self._num_blocks = axis_size(candidates.class_id) // LANES

    @property
    def dtype(self) -> tf.DType:
        return self._products.dtype

    def positive(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One positive of each anchor: its row [T] and its distance [T].

        Numbers go from 1 to num_positives, round the class from the anchor's own place on, so the
        anchor itself is left out. If an anchor has fewer positives than the number, its result has
        no meaning.
        """
        place = self._class_start + (self._rank + number) % self._class_size
        rows = tf.gather(self._candidates.classes.rows_by_class, place)
        return rows, self._distances(tf.gather(self._products, rows, batch_dims=1), rows)

    def extreme_positive(self, *, farthest: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Each anchor's farthest or nearest positive: its row [T] and its distance [T].

        If an anchor has no positive, its result has no meaning.
        """

        def compare(number, best, best_row):
            row, distance = self.positive(number)
            is_better = distance > best if farthest else distance < best
            is_better &= number <= self.num_positives
            best, best_row = tf.where(is_better, distance, best), tf.where(is_better, row, best_row)
            return number + 1, best, best_row

        worst = tf.fill(
            tf.shape(self.rows), tf.cast(-INFINITY if farthest else INFINITY, self.dtype)
        )
        most = tf.reduce_max(self.num_positives)
        _, best, row = tf.while_loop(
            lambda number, *_: number <= most, compare, (1, worst, tf.zeros_like(self.rows))
        )
        return row, best

    def nearest_negative(self, beyond: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Each anchor's nearest negative: its row [T], and bool [T] whether there is one.

        Args:
          beyond: [T] distances. Only negatives that are strictly farther count.
        """

        def key(distances, is_negative):
            if beyond is not None:
                is_negative &= distances > beyond[:, None, None]
            return tf.where(is_negative, distances, tf.cast(INFINITY, self.dtype))

        return self._search(key)

    def farthest_negative(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Each anchor's farthest negative: its row [T], and bool [T] whether there is one."""
        infinity = tf.cast(INFINITY, self.dtype)
        return self._search(
            lambda distances, is_negative: tf.where(
                is_negative & (distances < infinity), -distances, infinity
            )
        )

    def is_negative(self) -> tf.Tensor:
        """[T, B] bool: which candidates are negatives of each anchor. The padding is left out."""
        return self._candidates.classes.class_id[None] != self._class_id[:, None]

    def _distances(self, products: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        distances = self._candidates.distances
        return tf.gather(distances.offset, rows) + distances.factor * products

    def _search(self, key: SearchKey) -> tuple[tf.Tensor, tf.Tensor]:
        """The row [T] with the least key for each anchor, and bool [T] whether it is finite."""
        comparable, anchor_class = self._candidates.distances, self._class_id[:, None, None]
        by_lane = (self._num_blocks, LANES)
        offset = tf.reshape(comparable.offset, by_lane)
        class_id = tf.reshape(self._candidates.class_id, by_lane)
        products = tf.reshape(self._products, (axis_size(self.rows), *by_lane))
        distances = offset + comparable.factor * products
        lane_minima = tf.reduce_min(key(distances, class_id != anchor_class), 1)
        lane = tf.argmin(lane_minima, 1, output_type=tf.int32)
        # The candidates of the winning lane, one of each block.
        rows = tf.range(self._num_blocks)[None] * LANES + lane[:, None]
        distances = self._distances(tf.gather(self._products, rows, batch_dims=1), rows)[..., None]
        row_class = tf.gather(self._candidates.class_id, rows)[..., None]
        keys = key(distances, row_class != anchor_class)[..., 0]
        block = tf.argmin(keys, 1, output_type=tf.int32)
        exists = tf.reduce_min(lane_minima, 1) < INFINITY
        return tf.where(exists, block * LANES + lane, 0), exists
