"""Sums of triplet losses over a batch, computed tile by tile together with their gradient.

The miner compares distances, which takes one matmul for each tile. The exact distances of the
triplets that it chooses are then computed again and differentiated at once. After a tile, only the
sums and one gradient of the embeddings remain. Memory is therefore O(tile x B + B x D), whatever
the labels are.
"""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from tripletmill.errors import UsageError
from tripletmill.losses import mining
from tripletmill.losses.distances import DistanceMetric, comparable, distance
from tripletmill.losses.mining import axis_size

# How many numbers a tile has: 4 MB of float32. Smaller tiles cost more calls, and larger ones do
# not fit into the CPU's cache.
TILE_SIZE = 2**20
SUMS = ("terms", "active", "triplets", "positive_distance", "negative_distance")


@dataclasses.dataclass(frozen=True)
class TripletRule:
    """Which triplets are taken, and what each costs.

    Attributes:
      positive: "all", "hard" (the farthest) or "easy" (the nearest).
      negative: "all", "hard" (the nearest), "semihard" (the nearest that is farther than the
        positive; if there is none, the farthest) or "band" (the nearest that is farther than the
        positive by less than the margin; if there is none, no triplet is taken).
      soft: the cost is softplus(D+ - D-) instead of max(0, margin + D+ - D-).
      metric: see `tripletmill.losses.distances.distance`.
    """

    positive: str
    negative: str
    soft: bool
    metric: DistanceMetric


@dataclasses.dataclass(frozen=True)
class Triplets:
    """One triplet for each anchor: the one that costs most.

    Attributes:
      positive: [A] rows among the candidates.
      negative: [A] rows among the candidates.
      term: [A] the cost of the triplet, 0 or more.
      valid: [A] bool, whether the anchor has a triplet. If not, its other three values have no
        meaning.
    """

    positive: tf.Tensor
    negative: tf.Tensor
    term: tf.Tensor
    valid: tf.Tensor


# The sums [5], the gradient [B, D] of the sum of terms, and the fields of Triplets.
_State = tuple[tf.Tensor, ...]


def triplet_sums(
    embeddings: tf.Tensor,
    labels: tf.Tensor,
    anchors: tf.Tensor,
    margin: tf.Tensor,
    *,
    rule: TripletRule,
    jit_compile: bool,
) -> tuple[tf.Tensor, tf.Tensor, Triplets]:
    """Sums over the triplets of some anchors.

    Args:
      embeddings: [B, D] float32 or float64, all candidates.
      labels: [B] int32 or int64.
      anchors: [A] int32, the candidates that are anchors.
      margin: scalar of the embeddings' type.
      rule: which triplets are taken.
      jit_compile: whether XLA compiles the computation.

    Returns:
      total: scalar, the sum of terms. It alone has a gradient with respect to the embeddings. It
        is 0 if there are no embeddings. It is NaN if an embedding is not finite or if, with L2 or
        squared-L2, its square overflows.
      sums: [5], in the order of SUMS; the first is total again.
      triplets: the triplet of each anchor that costs most.

    Raises:
      UsageError: the metric reads variables, or the gradient is differentiated.
    """
    compute = _compiled(rule, jit_compile, tf.executing_eagerly())

    @tf.custom_gradient
    def differentiable_sums(embeddings: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        def of_batch() -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
            # Without the stop, an eager tape of the caller would record the computation.
            return compute(tf.stop_gradient(embeddings), labels, anchors, margin)

        def of_empty_batch() -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
            no_triplets = (
                anchors,
                anchors,
                tf.cast(anchors, embeddings.dtype),
                tf.cast(anchors, tf.bool),
            )
            no_sums = tf.zeros([len(SUMS)], embeddings.dtype)
            return no_sums, tf.zeros_like(embeddings), no_triplets

        batch_size = axis_size(embeddings)
        if isinstance(batch_size, int):
            sums, gradient, triplets = of_batch() if batch_size else of_empty_batch()
        else:
            sums, gradient, triplets = tf.cond(batch_size > 0, of_batch, of_empty_batch)

        def backward(upstream: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
            return upstream * _refuse_second_derivative(embeddings, gradient)

        return (sums[0], sums, *triplets), backward

    total, sums, *triplets = differentiable_sums(embeddings)
    return total, sums, Triplets(*triplets)


@tf.custom_gradient
def _refuse_second_derivative(
    embeddings: tf.Tensor, gradient: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    """Returns the gradient. To differentiate it is an error; else zeros would come out silently."""

    def backward(_: tf.Tensor) -> None:
        raise UsageError("triplet losses have no second derivative")

    return tf.identity(gradient), backward


@functools.lru_cache(maxsize=64)
def _compiled(rule: TripletRule, jit_compile: bool, eager: bool) -> Callable:
    """The function that computes the sums by a rule, compiled.

    There is one function for each rule, so that TensorFlow looks up its traces by shape alone. When
    it is called eagerly, with batches of any size, one trace serves all sizes. Inside a traced step
    it is traced for the exact shapes, because TPUs need them.
    """
    return tf.function(
        functools.partial(_compute, rule=rule),
        reduce_retracing=eager,
        jit_compile=jit_compile,
        autograph=False,  # AutoGraph would wrap our errors in its own
    )


def _compute(
    embeddings: tf.Tensor,
    labels: tf.Tensor,
    anchors: tf.Tensor,
    margin: tf.Tensor,
    *,
    rule: TripletRule,
) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
    """The sums [5], the gradient [B, D] of the first of them, and the fields of Triplets [A]."""
    distances = comparable(embeddings, rule.metric)
    is_finite = tf.reduce_all(tf.math.is_finite(distances.offset)) & tf.reduce_all(
        tf.math.is_finite(embeddings)
    )
    candidates = mining.make_candidates(labels, distances)
    if distances.metric is None and rule.negative != "all":
        # A matmul of few rows is slow.
        tiles, is_padding = _tiles(anchors, axis_size(candidates.class_id), least_rows=64)
    else:
        row_size = axis_size(candidates.class_id) * axis_size(embeddings, 1)
        tiles, is_padding = _tiles(anchors, row_size, least_rows=1)
    num_tiles = axis_size(tiles)

    def compute_tile(i: tf.Tensor, sums: tf.Tensor, gradient: tf.Tensor, *costliest: tf.Tensor):
        tile = mining.AnchorTile(candidates, tiles[i])
        terms = _Terms(embeddings, tile, is_padding[i], margin, rule)
        state = (sums, gradient, *(tf.zeros_like(x[0]) for x in costliest))
        sums, gradient, *tile_costliest = _accumulate_positives(state, tile, terms, rule)
        pairs = zip(costliest, tile_costliest, strict=True)
        costliest = tuple(tf.tensor_scatter_nd_update(x, [[i]], y[None]) for x, y in pairs)
        return i + 1, sums, gradient, *costliest

    rows = tf.zeros_like(tiles)
    no_triplets = (rows, rows, tf.cast(rows, embeddings.dtype), tf.cast(rows, tf.bool))
    sums = tf.zeros([len(SUMS)], embeddings.dtype)
    _, sums, gradient, *costliest = tf.while_loop(
        lambda i, *_: i < num_tiles,
        compute_tile,
        (0, sums, tf.zeros_like(embeddings), *no_triplets),
    )
    num_anchors = axis_size(anchors)
    triplets = tuple(tf.reshape(x, [-1])[:num_anchors] for x in costliest)
    return tf.where(is_finite, sums, sums * float("nan")), gradient, triplets


def _tiles(
    anchors: tf.Tensor, row_size: int | tf.Tensor, *, least_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Distributes anchors [A] over N tiles of T rows.

    T is as large as TILE_SIZE allows if each row takes row_size numbers, but at least least_rows.

    Returns:
      tiles: [N, T] the anchors. Padding, which is row 0, fills the last tile.
      is_padding: [N, T] bool.
    """
    num_anchors = axis_size(anchors)
    if isinstance(num_anchors, int) and isinstance(row_size, int):
        maximum, minimum = max, min
    else:
        maximum, minimum = tf.maximum, tf.minimum
    rows = minimum(maximum(TILE_SIZE // row_size, least_rows), maximum(num_anchors, 1))
    num_tiles = maximum(-(-num_anchors // rows), 1)  # 1 even if a replica has no anchor
    # All tiles have one size, the smallest that holds the anchors in as many tiles.
    rows = maximum(-(-num_anchors // num_tiles), 1)
    padded = tf.pad(anchors, [[0, num_tiles * rows - num_anchors]])
    is_padding = tf.range(num_tiles * rows) >= num_anchors
    return tf.reshape(padded, [num_tiles, rows]), tf.reshape(is_padding, [num_tiles, rows])


def _accumulate_positives(
    state: _State, tile: mining.AnchorTile, terms: "_Terms", rule: TripletRule
) -> _State:
    """Adds the triplets of all positives that the rule takes for the anchors of a tile."""
    if rule.positive != "all":
        positive = tile.extreme_positive(farthest=rule.positive == "hard")
        return terms.accumulate(state, *positive, tile.num_positives > 0)
    _, state = tf.while_loop(
        lambda number, _: number <= tf.reduce_max(tile.num_positives),
        lambda number, state: (
            number + 1,
            terms.accumulate(state, *tile.positive(number), number <= tile.num_positives),
        ),
        (1, state),
    )
    return state


@dataclasses.dataclass(frozen=True)
class _Costs:
    """The triplets of one positive for each anchor, [T, 1], or [T, B] with every negative.

    Attributes:
      to_positive: [T, 1] distances.
      to_negative: [T, 1] or [T, B] distances.
      terms: [T, 1] or [T, B] costs, 0 for a triplet that is not valid.
      valid: [T, 1] or [T, B] bool.
      total: scalar, the sum of terms.
    """

    to_positive: tf.Tensor
    to_negative: tf.Tensor
    terms: tf.Tensor
    valid: tf.Tensor
    total: tf.Tensor

    def sums(self) -> tf.Tensor:
        """[5] in the order of SUMS."""

        def sum_valid(x: tf.Tensor) -> tf.Tensor:
            x = tf.cast(x, self.terms.dtype)
            return tf.reduce_sum(tf.where(self.valid, x, tf.zeros_like(self.terms)))

        is_active, ones = self.terms > 0, tf.ones_like(self.terms)
        numbers = (is_active, ones, self.to_positive, self.to_negative)
        return tf.stack([self.total, *map(sum_valid, numbers)])


class _Terms:
    """Computes the terms of a tile's anchors, and adds them to the sums and to the gradient."""

    def __init__(
        self,
        embeddings: tf.Tensor,
        tile: mining.AnchorTile,
        is_padding: tf.Tensor,
        margin: tf.Tensor,
        rule: TripletRule,
    ) -> None:
        self._embeddings, self._tile, self._is_anchor = embeddings, tile, ~is_padding
        self._margin, self._rule = margin, rule
        if rule.negative == "hard":
            self._nearest = tile.nearest_negative()
        elif rule.negative == "semihard":
            self._farthest = tile.farthest_negative()

    def accumulate(
        self,
        state: _State,
        positive: tf.Tensor,
        mined_distance: tf.Tensor,
        exists: tf.Tensor,
    ) -> _State:
        """Adds the triplets of one positive for each anchor.

        Args:
          state: the sums [5], the gradient [B, D] and the costliest triplets so far, [T] each.
          positive: [T] rows of the positives.
          mined_distance: [T] their comparable distances.
          exists: [T] bool, whether the anchor has such a positive.

        Returns:
          The new state.
        """
        sums, gradient, *costliest = state
        takes_all = self._rule.negative == "all"
        rows = self._tile.rows
        anchors = tf.gather(self._embeddings, rows)[:, None]
        positives = tf.gather(self._embeddings, positive)[:, None]
        if takes_all:
            negative = tf.range(axis_size(self._embeddings))
            negatives, valid = self._embeddings[None], self._tile.is_negative()
        else:
            negative, has_negative = self._negatives(mined_distance)
            negatives = tf.gather(self._embeddings, negative)[:, None]
            valid = has_negative[:, None]
        valid &= (exists & self._is_anchor)[:, None]

        with tf.GradientTape() as tape:
            tape.watch((anchors, positives, negatives))
            costs = self._costs(anchors, positives, negatives, valid)
        if tape.watched_variables():
            raise UsageError("distance_metric reads variables, which would get no gradient")
        *gradients, gradient_of_negatives = tape.gradient(
            costs.total, (anchors, positives, negatives)
        )
        targets = [rows, positive]
        if takes_all:
            gradient += gradient_of_negatives[0]
        else:
            targets, gradients = [*targets, negative], [*gradients, gradient_of_negatives]
        # A triplet that is not valid may pair a point with itself, where the gradient of a callable
        # metric may be NaN.
        is_used = tf.reduce_any(costs.valid, 1, keepdims=True)
        gradients = [tf.where(is_used, g[:, 0], tf.zeros_like(g[:, 0])) for g in gradients]
        gradient = tf.tensor_scatter_nd_add(
            gradient, tf.concat(targets, 0)[:, None], tf.concat(gradients, 0)
        )
        sums += costs.sums()
        return sums, gradient, *self._costliest(costliest, positive, negative, costs)

    def _negatives(self, mined_distance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The negatives for positives at these distances [T]: rows [T] and whether there is one."""
        if self._rule.negative == "hard":
            return self._nearest
        rows, exists = self._tile.nearest_negative(beyond=mined_distance)
        if self._rule.negative == "semihard":
            farthest, has_negative = self._farthest
            return tf.where(exists, rows, farthest), has_negative
        return rows, exists

    def _costs(
        self, anchors: tf.Tensor, positives: tf.Tensor, negatives: tf.Tensor, valid: tf.Tensor
    ) -> _Costs:
        """Computes the exact distances and the terms of embeddings [T, 1, D] or [1, B, D]."""
        to_positive = distance(anchors, positives, self._rule.metric)
        to_negative = distance(anchors, negatives, self._rule.metric)
        difference = to_positive - to_negative
        if self._rule.negative == "band":
            valid &= difference > -self._margin
        terms = (
            tf.nn.softplus(difference) if self._rule.soft else tf.nn.relu(self._margin + difference)
        )
        terms = tf.where(valid, terms, tf.zeros_like(terms))
        return _Costs(to_positive, to_negative, terms, valid, tf.reduce_sum(terms))

    def _costliest(
        self, costliest: list[tf.Tensor], positive: tf.Tensor, negative: tf.Tensor, costs: _Costs
    ) -> tuple[tf.Tensor, ...]:
        """The fields of Triplets [T]: the costliest so far, or a triplet of this positive."""
        previous_positive, previous_negative, previous_term, previous_valid = costliest
        terms = tf.where(costs.valid, costs.terms, -tf.ones_like(costs.terms))
        column = tf.argmax(terms, 1, output_type=tf.int32)
        term = tf.reduce_max(terms, 1)
        negative = tf.gather(negative, column) if self._rule.negative == "all" else negative
        costs_more = (term >= 0) & (~previous_valid | (term > previous_term))
        return (
            tf.where(costs_more, positive, previous_positive),
            tf.where(costs_more, negative, previous_negative),
            tf.where(costs_more, term, previous_term),
            previous_valid | costs_more,
        )
