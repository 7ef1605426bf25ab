"""Distances between embeddings: exact for chosen pairs, fast for mining."""

from collections.abc import Callable

import tensorflow as tf

from preprocessing.errors import UsageError

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
        return 1.0 - tf.reduce_sum(tf.nn.l2_normalize(x, -1) * tf.nn.l2_normalize(y, -1), -1)
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


def mining_distances(
    anchors: tf.Tensor, candidates: tf.Tensor, metric: DistanceMetric
) -> tf.Tensor:
    """All distances, for comparing only: by one matmul, without gradient.

    Args:
      anchors: [A, D] embeddings.
      candidates: [B, D] embeddings.
      metric: as in `distance`.

    Returns:
      [A, B] numbers that order the candidates of each anchor as the metric does, up to rounding.
    """
    anchors, candidates = tf.stop_gradient(anchors), tf.stop_gradient(candidates)
    if callable(metric):
        return metric(anchors[:, None], candidates[None])
    check_metric(metric)
    if metric == "angular":
        return -tf.matmul(
            tf.nn.l2_normalize(anchors, -1), tf.nn.l2_normalize(candidates, -1), transpose_b=True
        )
    # |a|^2 is the same for all candidates of an anchor, so the order does not need it.
    dots = tf.matmul(anchors, candidates, transpose_b=True)
    return tf.reduce_sum(tf.square(candidates), -1)[None] - 2.0 * dots
