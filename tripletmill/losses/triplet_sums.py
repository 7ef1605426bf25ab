"""Sums of triplet losses over a batch, tile by tile, with the gradient found on the way.

Mining needs distances in order only: a matmul a tile. The distances of the triplets it chooses are
computed again, exactly, and differentiated there and then, so that nothing is kept but the sums
and one gradient of the embeddings: memory is O(tile x B + B x D) for labels of any structure.
"""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from tripletmill.errors import UsageError
from tripletmill.losses import mining
from tripletmill.losses.distances import DistanceMetric, distance, order
from tripletmill.losses.mining import length

# Numbers in a tile: 4 MB of float32. Fewer cost more calls, more fall out of the CPU's cache.
TILE_SIZE = 2**20
SUMS = ("terms", "active", "triplets", "positive_distance", "negative_distance")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which triplets are taken, and what each costs.

    Attributes:
      positive: "all", "hard" (farthest) or "easy" (nearest).
      negative: "all", "hard" (nearest), "semihard" (nearest beyond the positive, or the farthest
        where none is) or "band" (nearest beyond the positive, if within the margin).
      soft: softplus in place of the hinge.
      metric: see `tripletmill.losses.distances.distance`.
    """

    positive: str
    negative: str
    soft: bool
    metric: DistanceMetric


@dataclasses.dataclass(frozen=True)
class Triplets:
    """One triplet an anchor, the one that costs most.

    Attributes:
      positive: [A] rows among the candidates.
      negative: [A] rows among the candidates.
      term: [A] what it costs.
      valid: [A] bool; where False, the other three mean nothing.
    """

    positive: tf.Tensor
    negative: tf.Tensor
    term: tf.Tensor
    valid: tf.Tensor


def triplet_sums(
    embeddings: tf.Tensor,
    labels: tf.Tensor,
    anchors: tf.Tensor,
    margin: tf.Tensor,
    *,
    rule: Rule,
    jit_compile: bool,
) -> tuple[tf.Tensor, tf.Tensor, Triplets]:
    """Sums over the triplets of some anchors.

    Args:
      embeddings: [B, D] float32 or float64, all candidates.
      labels: [B] int32 or int64.
      anchors: [A] int32, which of them are anchors.
      margin: scalar of the embeddings' type.
      rule: which triplets.
      jit_compile: whether XLA compiles it.

    Returns:
      The sum of terms, a scalar, whose gradient with respect to the embeddings is the only one
      there is; it is NaN where an embedding is not finite, or its square overflows. All SUMS [5],
      the first one again. The triplets that cost most.
    """
    compute = _function(rule, jit_compile, tf.executing_eagerly())

    @tf.custom_gradient
    def sums(embeddings: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        def some() -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
            # Stopped, lest an eager tape records what happens inside.
            return compute(tf.stop_gradient(embeddings), labels, anchors, margin)

        def none() -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
            found = anchors, anchors, tf.cast(anchors, embeddings.dtype), tf.cast(anchors, tf.bool)
            return tf.zeros([len(SUMS)], embeddings.dtype), tf.zeros_like(embeddings), found

        size = length(embeddings)
        known = isinstance(size, int)
        values, gradient, triplets = (
            (some() if size else none()) if known else tf.cond(size > 0, some, none)
        )

        def backward(upstream: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
            return upstream * _once(embeddings, gradient)

        return (values[0], values, *triplets), backward

    total, values, *triplets = sums(embeddings)
    return total, values, Triplets(*triplets)


@tf.custom_gradient
def _once(embeddings: tf.Tensor, gradient: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The gradient; to differentiate it is an error, not a gradient that is silently missing."""

    def backward(_: tf.Tensor) -> None:
        raise UsageError("triplet losses have no second derivative")

    return tf.identity(gradient), backward


def _compute(
    embeddings: tf.Tensor, labels: tf.Tensor, anchors: tf.Tensor, margin: tf.Tensor, *, rule: Rule
) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
    """SUMS [5], the gradient [B, D] of the first of them, and the fields of Triplets."""
    comparable = order(embeddings, rule.metric)
    finite = tf.reduce_all(tf.math.is_finite(comparable.offset)) & tf.reduce_all(
        tf.math.is_finite(embeddings)
    )
    batch = mining.batch(labels, comparable)
    if comparable.metric is None and rule.negative != "all":
        # A matmul of few rows is slow.
        tiles, real = _tiles(anchors, length(batch.group), least_rows=64)
    else:
        numbers = length(batch.group) * length(embeddings, 1)
        tiles, real = _tiles(anchors, numbers, least_rows=1)
    num_tiles = length(tiles)

    def visit(i: tf.Tensor, sums, gradient, *found):
        tile = mining.Tile(batch, tiles[i])
        terms = _Terms(embeddings, tile, real[i], margin, rule)
        state = (sums, gradient, *(tf.zeros_like(x[0]) for x in found))
        if rule.positive == "all":
            _, state = tf.while_loop(
                lambda number, _: number <= tf.reduce_max(tile.num_positives),
                lambda number, state: (
                    number + 1,
                    terms.add(state, *tile.positive(number), number <= tile.num_positives),
                ),
                (1, state),
            )
        else:
            positive = tile.chosen_positive(farthest=rule.positive == "hard")
            state = terms.add(state, *positive, tile.num_positives > 0)
        sums, gradient, *new = state
        pairs = zip(found, new, strict=True)
        found = tuple(tf.tensor_scatter_nd_update(x, [[i]], y[None]) for x, y in pairs)
        return i + 1, sums, gradient, *found

    rows = tf.zeros_like(tiles)
    none = (rows, rows, tf.cast(rows, embeddings.dtype), tf.cast(rows, tf.bool))
    sums = tf.zeros([len(SUMS)], embeddings.dtype)
    _, sums, gradient, *found = tf.while_loop(
        lambda i, *_: i < num_tiles, visit, (0, sums, tf.zeros_like(embeddings), *none)
    )
    num_anchors = length(anchors)
    triplets = tuple(tf.reshape(x, [-1])[:num_anchors] for x in found)
    return tf.where(finite, sums, sums * float("nan")), gradient, triplets


class _Terms:
    """Adds the terms of a tile's anchors to the sums and to the gradient."""

    def __init__(
        self,
        embeddings: tf.Tensor,
        tile: mining.Tile,
        real: tf.Tensor,
        margin: tf.Tensor,
        rule: Rule,
    ) -> None:
        self._embeddings, self._tile, self._real = embeddings, tile, real
        self._margin, self._rule = margin, rule
        if rule.negative == "hard":
            self._nearest = tile.nearest_negative()
        elif rule.negative == "semihard":
            self._farthest = tile.farthest_negative()

    def _negatives(self, reach: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows [T] and whether there is one [T], for positives at these distances [T]."""
        if self._rule.negative == "hard":
            return self._nearest
        rows, found = self._tile.nearest_negative(beyond=reach)
        if self._rule.negative == "semihard":
            farthest, exists = self._farthest
            return tf.where(found, rows, farthest), exists
        return rows, found

    def add(
        self,
        state: tuple[tf.Tensor, ...],
        positive: tf.Tensor,
        reach: tf.Tensor,
        exists: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """One positive for every anchor: rows [T], distances [T] as mined, and which exist [T].

        The state: SUMS, the gradient [B, D], and the costliest triplets so far, [T] each.
        """
        sums, gradient, *worst = state
        every_negative = self._rule.negative == "all"
        rows = self._tile.rows
        anchors = tf.gather(self._embeddings, rows)[:, None]
        positives = tf.gather(self._embeddings, positive)[:, None]
        if every_negative:
            negative = tf.range(length(self._embeddings))
            negatives, valid = self._embeddings[None], self._tile.is_negative()
        else:
            negative, found = self._negatives(reach)
            negatives, valid = tf.gather(self._embeddings, negative)[:, None], found[:, None]
        valid &= (exists & self._real)[:, None]

        with tf.GradientTape() as tape:
            tape.watch((anchors, positives, negatives))
            to_positive = distance(anchors, positives, self._rule.metric)  # [T, 1]
            to_negative = distance(anchors, negatives, self._rule.metric)  # [T, 1] or [T, B]
            difference = to_positive - to_negative
            if self._rule.negative == "band":
                valid &= difference > -self._margin
            terms = (
                tf.nn.softplus(difference)
                if self._rule.soft
                else tf.nn.relu(self._margin + difference)
            )
            terms = tf.where(valid, terms, tf.zeros_like(terms))
            total = tf.reduce_sum(terms)
        if tape.watched_variables():
            raise UsageError("distance_metric reads variables, which would get no gradient")
        *slopes, to_negatives = tape.gradient(total, (anchors, positives, negatives))
        owners = [rows, positive]
        if every_negative:
            gradient += to_negatives[0]
        else:
            owners, slopes = [*owners, negative], [*slopes, to_negatives]
        # What is not valid may pair a point with itself, where a callable's slope may be NaN.
        used = tf.reduce_any(valid, 1, keepdims=True)
        slopes = [tf.where(used, slope[:, 0], tf.zeros_like(slope[:, 0])) for slope in slopes]
        gradient = tf.tensor_scatter_nd_add(
            gradient, tf.concat(owners, 0)[:, None], tf.concat(slopes, 0)
        )

        def add_up(x: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.where(valid, tf.cast(x, terms.dtype), tf.zeros_like(terms)))

        sums += tf.stack(
            [total, *map(add_up, (terms > 0, tf.ones_like(terms), to_positive, to_negative))]
        )
        return sums, gradient, *self._worst(worst, positive, negative, terms, valid)

    def _worst(self, state, positive, negative, terms, valid):
        """The costliest triplets [T], with those of this positive looked at."""
        before_positive, before_negative, before_term, before_valid = state
        costs = tf.where(valid, terms, -tf.ones_like(terms))
        column = tf.argmax(costs, 1, output_type=tf.int32)
        cost = tf.reduce_max(costs, 1)
        negative = tf.gather(negative, column) if self._rule.negative == "all" else negative
        better = (cost >= 0) & (~before_valid | (cost > before_term))
        return (
            tf.where(better, positive, before_positive),
            tf.where(better, negative, before_negative),
            tf.where(better, cost, before_term),
            before_valid | better,
        )


@functools.lru_cache(maxsize=64)
def _function(rule: Rule, jit_compile: bool, eager: bool) -> Callable:
    """One for each rule, so that TensorFlow's cache of traces is by shape alone.

    Called eagerly, with batches of any size, it is traced for all sizes at once; within a traced
    step for its very shapes, which TPUs need.
    """
    return tf.function(
        functools.partial(_compute, rule=rule),
        reduce_retracing=eager,
        jit_compile=jit_compile,
        autograph=False,  # it would wrap our errors
    )


def _tiles(
    anchors: tf.Tensor, numbers: int | tf.Tensor, *, least_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Anchors [A] -> rows [N, T], filled up with row 0, and bool [N, T], False for the filling.

    T rows of this many numbers each fit into TILE_SIZE, but for least_rows.
    """
    num_anchors = length(anchors)
    if isinstance(num_anchors, int) and isinstance(numbers, int):
        most, least = max, min
    else:
        most, least = tf.maximum, tf.minimum
    rows = least(most(TILE_SIZE // numbers, least_rows), most(num_anchors, 1))
    count = most(-(-num_anchors // rows), 1)  # a replica may have no row
    rows = most(-(-num_anchors // count), 1)  # tiles of one size, with as little filling as can be
    filled = tf.pad(anchors, [[0, count * rows - num_anchors]])
    real = tf.range(count * rows) < num_anchors
    return tf.reshape(filled, [count, rows]), tf.reshape(real, [count, rows])
