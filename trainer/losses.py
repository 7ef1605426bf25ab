"""Triplet losses over the global batch.

  result = semihard_triplets(labels, embeddings, margin=0.2)
  result.loss, result.statistics()

In a replica context of several replicas, `loss` is this replica's share: the sum over its own
anchors, divided by the count over all replicas. Summed over replicas it is the loss of the global
batch, and so are its gradients. Triplets are mined without gradient; the distances of the chosen
ones are computed again, exactly, and differentiated.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from preprocessing.errors import UsageError
from trainer import global_batch, mining
from trainer.distances import DistanceMetric, distance, mining_distances


@dataclasses.dataclass(frozen=True)
class TripletResult:
    """The loss, and what it was made of.

    Attributes:
      loss: scalar, this replica's share; 0 where no triplet is valid.
      terms: [T] terms of the loss, 0 where not valid.
      positive_distance: [T] distance of anchor and positive.
      negative_distance: [T] distance of anchor and negative.
      valid: [T] bool.
      count: scalar, valid triplets of all replicas, at least 1.
    """

    loss: tf.Tensor
    terms: tf.Tensor
    positive_distance: tf.Tensor
    negative_distance: tf.Tensor
    valid: tf.Tensor
    count: tf.Tensor

    def statistics(self) -> dict[str, tf.Tensor]:
        """Scalars that, summed over replicas, hold for the global batch.

        loss; active: share of triplets with loss left, 0 to 1; positive_distance and
        negative_distance: means.
        """

        def mean(x: tf.Tensor) -> tf.Tensor:
            x = tf.where(self.valid, tf.cast(x, self.count.dtype), tf.zeros((), self.count.dtype))
            return tf.reduce_sum(x) / self.count

        return {
            "loss": self.loss,
            "active": mean(self.terms > 0),
            "positive_distance": mean(self.positive_distance),
            "negative_distance": mean(self.negative_distance),
        }


def hard_triplets(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    margin: float = 1.0,
    soft: bool = False,
    distance_metric: DistanceMetric = "L2",
    across_replicas: bool = True,
) -> TripletResult:
    """Batch-hard triplet loss (Hermans, Beyer, Leibe: In Defense of the Triplet Loss, 2017).

    For every anchor the farthest positive and the nearest negative: max(0, margin + D+ - D-), the
    mean over anchors that have both.

    Args:
      labels: [b] or [b, 1] integers.
      embeddings: [b, D] floats.
      margin: in units of the distance, not negative.
      soft: softplus(D+ - D-) in place of the margin.
      distance_metric: see `trainer.distances.distance`.
      across_replicas: False mines within each replica.
    """
    return _triplet_loss(
        labels, embeddings, mining.hard, margin, soft, distance_metric, across_replicas
    )


def semihard_triplets(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    margin: float = 1.0,
    distance_metric: DistanceMetric = "L2",
    across_replicas: bool = True,
) -> TripletResult:
    """Semi-hard triplet loss (Schroff, Kalenichenko, Philbin: FaceNet, 2015).

    For every ordered pair of a class, the nearest negative that is farther than the positive, or
    the farthest negative where none is: max(0, margin + D+ - D-), the mean over pairs whose anchor
    has a negative.

    Args:
      labels: [b] or [b, 1] integers.
      embeddings: [b, D] floats.
      margin: in units of the distance, not negative.
      distance_metric: see `trainer.distances.distance`.
      across_replicas: False mines within each replica.
    """
    return _triplet_loss(
        labels, embeddings, mining.semihard, margin, False, distance_metric, across_replicas
    )


def _triplet_loss(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    mine: Callable[[tf.Tensor, mining.Pairs], mining.Triplets],
    margin: float,
    soft: bool,
    metric: DistanceMetric,
    across_replicas: bool,
) -> TripletResult:
    if margin < 0:
        raise UsageError(f"margin {margin}: 0 or more")
    labels = tf.cast(tf.reshape(labels, [-1]), tf.int32)
    batch = global_batch.gather(labels, embeddings, across_replicas=across_replicas)
    triplets = mine(
        mining_distances(embeddings, batch.embeddings, metric),
        mining.pairs(labels, batch.labels, batch.first_row),
    )
    anchor = global_batch.take_rows(embeddings, triplets.anchor)
    positive = global_batch.take_rows(batch.embeddings, triplets.positive)
    negative = global_batch.take_rows(batch.embeddings, triplets.negative)
    to_positive, to_negative = (
        distance(anchor, positive, metric),
        distance(anchor, negative, metric),
    )
    difference = to_positive - to_negative
    terms = tf.nn.softplus(difference) if soft else tf.nn.relu(margin + difference)
    terms = tf.where(triplets.valid, terms, tf.zeros_like(terms))
    count = global_batch.global_count(
        tf.reduce_sum(tf.cast(triplets.valid, terms.dtype)), across_replicas=across_replicas
    )
    count = tf.maximum(count, 1.0)
    return TripletResult(
        loss=tf.reduce_sum(terms) / count,
        terms=terms,
        positive_distance=to_positive,
        negative_distance=to_negative,
        valid=triplets.valid,
        count=count,
    )
