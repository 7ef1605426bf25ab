"""Which positive and which negative an anchor gets: rows, no gradients.

Anchors are taken a tile of rows at a time, against all candidates. A search over [T, B] numbers is
one pass that keeps the least of every lane (candidates whose rows are equal modulo LANES), then a
look at the winning lane alone: XLA fuses the pass and vectorises it, which it does not for argmin.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tripletmill.losses.distances import Order

LANES = 64
INFINITY = float("inf")

# Numbers to minimise, from distances [T, ?, ?] and whether the candidate is of another class.
Key = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def length(x: tf.Tensor, axis: int = 0) -> int | tf.Tensor:
    """Size of an axis: a number where it is known, so that shapes made from it are known."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


@dataclasses.dataclass(frozen=True)
class Classes:
    """Which rows of a batch are of one class.

    Attributes:
      by_class: [B] the rows, class after class.
      group: [B] number of each row's class, 0 and up in the order of the labels.
      start: [B] where each row's class begins in by_class.
      size: [B] rows of each row's class.
      rank: [B] each row's place within its class.
    """

    by_class: tf.Tensor
    group: tf.Tensor
    start: tf.Tensor
    size: tf.Tensor
    rank: tf.Tensor


def classes(labels: tf.Tensor) -> Classes:
    """Groups rows by their label.

    Args:
      labels: [B] int32 or int64.
    """
    by_class = tf.argsort(labels, stable=True)
    ordered = tf.gather(labels, by_class)
    before = tf.concat([ordered[:1], ordered[:-1]], 0)
    group = tf.cumsum(tf.cast(ordered != before, tf.int32))
    size = tf.math.unsorted_segment_sum(tf.ones_like(group), group, tf.shape(labels)[0])
    start = tf.cumsum(size, exclusive=True)
    place = tf.math.invert_permutation(by_class)
    group = tf.gather(group, place)
    start = tf.gather(start, group)
    return Classes(by_class, group, start, tf.gather(size, group), place - start)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Candidates ready to be searched; their number is filled up to a multiple of LANES.

    Attributes:
      classes: of the candidates without the filling.
      order: of the candidates with the filling, whose offset is infinite.
      group: [B] of each candidate, -1 for the filling.
    """

    classes: Classes
    order: Order
    group: tf.Tensor


def batch(labels: tf.Tensor, order: Order) -> Batch:
    """Candidates [B, D] and their labels [B], to be searched."""
    found = classes(labels)
    missing = -length(labels) % LANES
    # Not zeros: a callable metric may be undefined there.
    copies = tf.broadcast_to(order.vectors[:1], [missing, length(order.vectors, 1)])
    filled = dataclasses.replace(
        order,
        vectors=tf.concat([order.vectors, copies], 0),
        offset=tf.pad(order.offset, [[0, missing]], constant_values=INFINITY),
    )
    return Batch(found, filled, tf.pad(found.group, [[0, missing]], constant_values=-1))


class Tile:
    """Some anchors against all candidates.

    Attributes:
      rows: [T] the anchors, as rows among the candidates.
      num_positives: [T]
    """

    def __init__(self, batch: Batch, rows: tf.Tensor) -> None:
        self._batch = batch
        self.rows = rows
        self._group = tf.gather(batch.classes.group, rows)
        self._start = tf.gather(batch.classes.start, rows)
        self._size = tf.gather(batch.classes.size, rows)
        self._rank = tf.gather(batch.classes.rank, rows)
        self.num_positives = self._size - 1
        self._raw = batch.order.raw(rows)
        self._blocks = length(batch.group) // LANES

    def positive(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The anchors' positives of this number, from 1 on: rows [T] and distances [T].

        Round the class from the anchor's own place on, so never the anchor itself; meaningless
        where an anchor has fewer.
        """
        place = self._start + (self._rank + number) % self._size
        rows = tf.gather(self._batch.classes.by_class, place)
        return rows, self._distances(tf.gather(self._raw, rows, batch_dims=1), rows)

    def chosen_positive(self, *, farthest: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Each anchor's farthest or nearest positive: rows [T] and distances [T]."""

        def better(number, best, best_row):
            row, distance = self.positive(number)
            replaces = distance > best if farthest else distance < best
            replaces &= number <= self.num_positives
            best, best_row = tf.where(replaces, distance, best), tf.where(replaces, row, best_row)
            return number + 1, best, best_row

        worst = tf.fill(
            tf.shape(self.rows), tf.cast(-INFINITY if farthest else INFINITY, self.dtype)
        )
        most = tf.reduce_max(self.num_positives)
        _, best, row = tf.while_loop(
            lambda number, *_: number <= most, better, (1, worst, tf.zeros_like(self.rows))
        )
        return row, best

    def nearest_negative(self, beyond: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Each anchor's nearest negative: rows [T], and bool [T] whether there is one.

        Args:
          beyond: [T] distances; only negatives strictly farther than that count.
        """

        def key(distances, other):
            if beyond is not None:
                other &= distances > beyond[:, None, None]
            return tf.where(other, distances, tf.cast(INFINITY, self.dtype))

        return self._search(key)

    def is_negative(self) -> tf.Tensor:
        """[T, B] bool: which candidates are of another class than each anchor."""
        return self._batch.classes.group[None] != self._group[:, None]

    def farthest_negative(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Each anchor's farthest negative: rows [T], and bool [T] whether there is one."""
        infinity = tf.cast(INFINITY, self.dtype)
        return self._search(
            lambda distances, other: tf.where(other & (distances < infinity), -distances, infinity)
        )

    @property
    def dtype(self) -> tf.DType:
        return self._raw.dtype

    def _distances(self, raw: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        order = self._batch.order
        return tf.gather(order.offset, rows) + order.factor * raw

    def _search(self, key: Key) -> tuple[tf.Tensor, tf.Tensor]:
        order, own = self._batch.order, self._group[:, None, None]
        by_lane = (self._blocks, LANES)
        offset, group = tf.reshape(order.offset, by_lane), tf.reshape(self._batch.group, by_lane)
        raw = tf.reshape(self._raw, (length(self.rows), *by_lane))
        distances = offset + order.factor * raw
        lanes = tf.reduce_min(key(distances, group != own), 1)
        lane = tf.argmin(lanes, 1, output_type=tf.int32)
        rows = tf.range(self._blocks)[None] * LANES + lane[:, None]
        distances = self._distances(tf.gather(self._raw, rows, batch_dims=1), rows)[..., None]
        numbers = key(distances, tf.gather(self._batch.group, rows)[..., None] != own)[..., 0]
        block = tf.argmin(numbers, 1, output_type=tf.int32)
        found = tf.reduce_min(lanes, 1) < INFINITY
        return tf.where(found, block * LANES + lane, 0), found
