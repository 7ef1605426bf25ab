"""Distances between embeddings.

There are two kinds. `distance` is exact and differentiable; it is used for the triplets that were
chosen. `comparable` gives cheaper numbers whose order is that of the distances; mining compares
them to choose.
"""

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
      y: [..., D] embeddings. The leading axes of x and y are broadcast.
      metric: "L2", "squared-L2", "angular" (1 - cosine, 0 to 2; 1 if one of the two embeddings is
        zero), or a callable that maps x and y to the distances.

    Returns:
      [...] distances. The gradient of "L2" between equal points is 0.

    Raises:
      UsageError: the metric is a name that is not in METRICS.
    """
    if callable(metric):
        return metric(x, y)
    check_metric(metric)
    if metric == "angular":
        return 1.0 - tf.reduce_sum(l2_normalize(x) * l2_normalize(y), -1)
    squared = tf.reduce_sum(tf.math.squared_difference(x, y), -1)
    return squared if metric == "squared-L2" else safe_sqrt(squared)


def check_metric(metric: DistanceMetric) -> None:
    """Raises UsageError unless the metric is a callable or one of METRICS."""
    if not callable(metric) and metric not in METRICS:
        raise UsageError(
            f"distance_metric {metric!r}: must be one of {', '.join(METRICS)}, or a callable"
        )


def safe_sqrt(x: tf.Tensor) -> tf.Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite. Negative numbers give 0."""
    is_zero = x <= 0  # False for NaN, so that NaN stays NaN
    return tf.where(is_zero, tf.zeros_like(x), tf.sqrt(tf.where(is_zero, tf.ones_like(x), x)))


def l2_normalize(x: tf.Tensor) -> tf.Tensor:
    """Scales vectors [..., D] to length 1. Zero vectors stay zero.

    Unlike tf.math.l2_normalize, it takes very long and very short vectors too: their squares would
    overflow or vanish, so each vector is divided by its largest element first.
    """
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), -1, keepdims=True))
    x /= tf.where(largest > 0, largest, tf.ones_like(largest))
    squared = tf.reduce_sum(tf.square(x), -1, keepdims=True)  # at least 1, or 0 for a zero vector
    return x * tf.math.rsqrt(tf.where(squared > 0, squared, tf.ones_like(squared)))


@dataclasses.dataclass(frozen=True)
class ComparableDistances:
    """Numbers that order the candidates of an anchor as the metric does.

    The number of an anchor and a candidate is offset + factor * product. For L2 and squared-L2 it
    is |c|^2 - 2 a.c for the anchor a and the candidate c: the term |a|^2 is left out, because it is
    equal for all candidates of an anchor.

    Attributes:
      vectors: [B, D] the candidates.
      offset: [B], one for each candidate. It is infinite for the rows that only fill up the batch.
      factor: of the products.
      metric: a callable whose values take the place of the products, or None if the products are
        dot products, computed by one matmul.
    """

    vectors: tf.Tensor
    offset: tf.Tensor
    factor: float
    metric: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        """[T, B] products of the anchors, which are the candidates in rows [T], and all candidates.

        With a callable metric, these are its distances.
        """
        anchors = tf.gather(self.vectors, rows)
        if self.metric is None:
            return tf.matmul(anchors, self.vectors, transpose_b=True)
        return self.metric(anchors[:, None], self.vectors[None])


def comparable(embeddings: tf.Tensor, metric: DistanceMetric) -> ComparableDistances:
    """Prepares the embeddings [B, D] for comparing their distances.

    The comparison is exact up to rounding. No gradient passes through it.

    Raises:
      UsageError: the metric is a name that is not in METRICS.
    """
    embeddings = tf.stop_gradient(embeddings)
    zeros = tf.zeros_like(embeddings[:, 0])
    if callable(metric):
        return ComparableDistances(embeddings, zeros, 1.0, metric)
    check_metric(metric)
    if metric == "angular":
        return ComparableDistances(l2_normalize(embeddings), zeros, -1.0, None)
    return ComparableDistances(embeddings, tf.reduce_sum(tf.square(embeddings), -1), -2.0, None)
