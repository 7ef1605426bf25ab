"""Which positive and which negative an anchor gets: indices, no gradients."""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Triplets:
    """Indices of triplets.

    Attributes:
      anchor: [T] rows among the anchors.
      positive: [T] rows among the candidates.
      negative: [T] rows among the candidates.
      valid: [T] bool; where False, the other three mean nothing.
    """

    anchor: tf.Tensor
    positive: tf.Tensor
    negative: tf.Tensor
    valid: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Who is what to whom: [A, B] bool masks over anchors and candidates."""

    positive: tf.Tensor
    negative: tf.Tensor


def pairs(anchor_labels: tf.Tensor, labels: tf.Tensor, first_row: tf.Tensor) -> Pairs:
    """Masks of positives and negatives; an anchor is not its own positive.

    Args:
      anchor_labels: [A] labels of the anchors.
      labels: [B] labels of the candidates.
      first_row: row of the first anchor among the candidates.
    """
    same = anchor_labels[:, None] == labels[None]
    rows = first_row + tf.range(tf.shape(anchor_labels)[0])
    itself = rows[:, None] == tf.range(tf.shape(labels)[0])[None]
    return Pairs(positive=same & ~itself, negative=~same)


def hard(distances: tf.Tensor, masks: Pairs) -> Triplets:
    """For every anchor its farthest positive and its nearest negative (Hermans et al., 2017).

    Args:
      distances: [A, B], or numbers in the same order.
      masks: of the same shape.

    Returns:
      A triplets, one an anchor; valid where it has a positive and a negative.
    """
    infinity = tf.constant(float("inf"), distances.dtype)
    return Triplets(
        anchor=tf.range(tf.shape(distances)[0]),
        positive=_argmax(tf.where(masks.positive, distances, -infinity)),
        negative=_argmax(tf.where(masks.negative, -distances, -infinity)),
        valid=tf.reduce_any(masks.positive, 1) & tf.reduce_any(masks.negative, 1),
    )


def semihard(distances: tf.Tensor, masks: Pairs) -> Triplets:
    """For every anchor and positive, the nearest negative that is farther than the positive.

    Where none is farther, the farthest negative (Schroff et al., 2015, as in TensorFlow Addons).

    Args:
      distances: [A, B], or numbers in the same order.
      masks: of the same shape.

    Returns:
      A x M triplets, M the largest number of positives that an anchor has.
    """
    infinity = tf.constant(float("inf"), distances.dtype)
    num_positives = tf.reduce_sum(tf.cast(masks.positive, tf.int32), 1)
    most = tf.reduce_max(num_positives)
    _, positives = tf.math.top_k(tf.cast(masks.positive, tf.int32), most)
    farthest = _argmax(tf.where(masks.negative, distances, -infinity))

    def negatives_beyond(positive: tf.Tensor) -> tf.Tensor:
        reach = tf.gather(distances, positive, batch_dims=1)[:, None]
        beyond = masks.negative & (distances > reach)
        nearest = _argmax(tf.where(beyond, -distances, -infinity))
        return tf.where(tf.reduce_any(beyond, 1), nearest, farthest)

    columns = tf.transpose(positives)
    negatives = tf.map_fn(negatives_beyond, columns)
    num_anchors = tf.shape(distances)[0]
    exists = tf.range(most)[:, None] < num_positives[None]
    return Triplets(
        anchor=tf.tile(tf.range(num_anchors), most[None]),
        positive=tf.reshape(columns, [-1]),
        negative=tf.reshape(negatives, [-1]),
        valid=tf.reshape(exists & tf.reduce_any(masks.negative, 1)[None], [-1]),
    )


def _argmax(x: tf.Tensor) -> tf.Tensor:
    return tf.argmax(x, axis=1, output_type=tf.int32)
