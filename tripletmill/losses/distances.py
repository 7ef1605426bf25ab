"""Distances between embeddings: exact for chosen pairs, and in an order for mining."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tripletmill.errors import UsageError

DistanceMetric = str | Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

METRICS = ("L2", "squared-L2", "angular")


def distance(x: tf.Tensor, y: tf.Tensor, metric: DistanceMetric) -> tf.Tensor:
    """Distances along the last axis, with finite gradients everywhere.

    Args:
      x: [..., D] embeddings.
      y: [..., D] embeddings; shapes broadcast.
      metric: "L2", "squared-L2", "angular" (1 - cosine; 1 where one of the two is zero), or a
        callable with this function's first two arguments and its result.

    Returns:
      [...] distances; the gradient of "L2" between equal points is 0.
    """
    if callable(metric):
        return metric(x, y)
    check_metric(metric)
    if metric == "angular":
        return 1.0 - tf.reduce_sum(unit(x) * unit(y), -1)
    squared = tf.reduce_sum(tf.math.squared_difference(x, y), -1)
    return squared if metric == "squared-L2" else safe_sqrt(squared)


def check_metric(metric: DistanceMetric) -> None:
    """Raises UsageError for a name that is none of METRICS."""
    if not callable(metric) and metric not in METRICS:
        raise UsageError(f"distance_metric {metric!r}: one of {', '.join(METRICS)}, or a callable")


def safe_sqrt(x: tf.Tensor) -> tf.Tensor:
    """Square root whose gradient at 0 is 0, not infinite."""
    zero = x <= 0  # not so for NaN, which stays NaN
    return tf.where(zero, tf.zeros_like(x), tf.sqrt(tf.where(zero, tf.ones_like(x), x)))


def unit(x: tf.Tensor) -> tf.Tensor:
    """[..., D] at length 1, however long or short before; zero vectors stay zero."""
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), -1, keepdims=True))
    x /= tf.where(largest > 0, largest, tf.ones_like(largest))
    squared = tf.reduce_sum(tf.square(x), -1, keepdims=True)  # 1 or more, or zero
    return x * tf.math.rsqrt(tf.where(squared > 0, squared, tf.ones_like(squared)))


@dataclasses.dataclass(frozen=True)
class Order:
    """Numbers that order candidates as the metric does: offset + factor * raw(anchors).

    So |c|^2 - 2 a.c stands for L2: |a|^2 is the same for all candidates of an anchor.

    Attributes:
      vectors: [B, D] the candidates, as raw takes them.
      offset: [B]; infinite for a candidate that is none.
      factor: of the raw numbers.
      metric: a callable, or None where raw is one matmul.
    """

    vectors: tf.Tensor
    offset: tf.Tensor
    factor: float
    metric: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None

    def raw(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, B] of the candidates in these rows [T], as anchors, to all candidates."""
        anchors = tf.gather(self.vectors, rows)
        if self.metric is None:
            return tf.matmul(anchors, self.vectors, transpose_b=True)
        return self.metric(anchors[:, None], self.vectors[None])


def order(embeddings: tf.Tensor, metric: DistanceMetric) -> Order:
    """How to compare distances among embeddings [B, D], up to rounding and without gradient."""
    embeddings = tf.stop_gradient(embeddings)
    zeros = tf.zeros_like(embeddings[:, 0])
    if callable(metric):
        return Order(embeddings, zeros, 1.0, metric)
    check_metric(metric)
    if metric == "angular":
        return Order(unit(embeddings), zeros, -1.0, None)
    return Order(embeddings, tf.reduce_sum(tf.square(embeddings), -1), -2.0, None)
