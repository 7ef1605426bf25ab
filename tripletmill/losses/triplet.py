"""Triplet losses over the global batch.

  loss = triplet_semihard_loss(labels, embeddings, margin=0.2)
  result = semihard_triplets(labels, embeddings, margin=0.2)  # .loss, .statistics(), .costliest
  model.compile(loss=TripletSemiHardLoss(margin=0.2), optimizer=...)

In a replica context of several replicas, a loss is this replica's share: the sum over its own
anchors, divided by the count over all replicas. Summed over replicas it is the loss of the global
batch, and so are its gradients. docs/losses.md has formulas, edge cases and a worked example.
"""

import dataclasses
from typing import Literal, get_args

import tensorflow as tf

from tripletmill.errors import UsageError
from tripletmill.losses import global_batch
from tripletmill.losses.arguments import (
    check_embeddings,
    check_margin,
    check_shapes,
    computable,
    flat_labels,
)
from tripletmill.losses.distances import DistanceMetric, check_metric, distance
from tripletmill.losses.triplet_sums import SUMS, Rule, Triplets, triplet_sums

Positive = Literal["all", "hard", "easy"]
Negative = Literal["all", "hard", "semihard", "band"]
POSITIVES, NEGATIVES = get_args(Positive), get_args(Negative)

# Names of what `TripletResult.statistics` returns, in this order.
STATISTICS = ("loss", "active", "positive_distance", "negative_distance")


@dataclasses.dataclass(frozen=True)
class TripletResult:
    """The loss, and what it was made of.

    Attributes:
      loss: scalar of the embeddings' type, this replica's share; 0 where no triplet counts.
      sums: [5] this replica's SUMS.
      count: scalar, triplets of all replicas, at least 1.
      costliest: for each of this replica's anchors, its triplet that costs most; rows of the
        global batch (if all replicas bring as many rows, where they mine apart).
    """

    loss: tf.Tensor
    sums: tf.Tensor
    count: tf.Tensor
    costliest: Triplets

    def statistics(self) -> dict[str, tf.Tensor]:
        """Scalars that, summed over replicas, hold for the global batch.

        loss; active: share of triplets with loss left, 0 to 1; positive_distance and
        negative_distance: means.
        """
        means = dict(zip(SUMS, tf.unstack(self.sums / self.count), strict=True))
        values = {**means, "loss": self.loss}
        return {name: values[name] for name in STATISTICS}


def batch_triplets(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    positive: Positive = "all",
    negative: Negative = "semihard",
    margin: float = 1.0,
    soft: bool = False,
    nonzero_mean: bool = False,
    distance_metric: DistanceMetric = "L2",
    across_replicas: bool = True,
    jit_compile: bool = True,
) -> TripletResult:
    """Triplet loss over a batch, by the positives and negatives that it takes.

    Args:
      labels: [b] or [b, 1] integers.
      embeddings: [b, D] float16, bfloat16, float32 or float64; the first two are computed in
        float32.
      positive: of each anchor, "all", the farthest ("hard") or the nearest ("easy").
      negative: for each of those, "all"; the nearest ("hard"); the nearest that is farther than
        the positive, or the farthest where none is ("semihard"); the nearest that is farther than
        the positive, if by less than the margin ("band").
      margin: in units of the distance, not negative.
      soft: softplus(D+ - D-) in place of max(0, margin + D+ - D-).
      nonzero_mean: divide by the number of terms above zero, not of all triplets.
      distance_metric: see `tripletmill.losses.distances.distance`.
      across_replicas: False mines within each replica.
      jit_compile: False does without XLA: several times slower, for platforms that lack it.

    Returns:
      The loss, statistics and the costliest triplets. An anchor without a positive or without a
      negative contributes nothing and is not counted; with none left the loss is 0. It is NaN
      where an embedding is not finite (or its square overflows). There is no second derivative.

    Raises:
      UsageError: a wrong value, type or shape of an argument.
    """
    for name, value, known in (
        ("positive", positive, POSITIVES),
        ("negative", negative, NEGATIVES),
    ):
        if value not in known:
            raise UsageError(f"{name} {value!r}: one of {', '.join(known)}")
    margin = check_margin(margin)
    check_metric(distance_metric)
    labels, embeddings = flat_labels(labels), tf.convert_to_tensor(embeddings)
    check_shapes(labels, embeddings)
    dtype, embeddings = embeddings.dtype, computable(embeddings)
    batch = global_batch.gather(labels, embeddings, across_replicas=across_replicas)
    total, sums, costliest = triplet_sums(
        batch.embeddings,
        batch.labels,
        batch.rows,
        tf.constant(margin, embeddings.dtype),
        rule=Rule(positive, negative, bool(soft), distance_metric),
        jit_compile=jit_compile,
    )
    counts = tf.maximum(global_batch.global_sum(sums, across_replicas=across_replicas), 1.0)
    active, count = counts[SUMS.index("active")], counts[SUMS.index("triplets")]
    loss = total / (active if nonzero_mean else count)
    costliest = dataclasses.replace(
        costliest,
        positive=costliest.positive + batch.before,
        negative=costliest.negative + batch.before,
    )
    return TripletResult(tf.cast(loss, dtype), tf.stop_gradient(sums), count, costliest)


def hard_triplets(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    margin: float = 1.0,
    soft: bool = False,
    distance_metric: DistanceMetric = "L2",
    across_replicas: bool = True,
) -> TripletResult:
    """What `triplet_hard_loss` computes, with statistics and the triplets themselves."""
    return batch_triplets(
        labels,
        embeddings,
        positive="hard",
        negative="hard",
        margin=margin,
        soft=soft,
        distance_metric=distance_metric,
        across_replicas=across_replicas,
    )


def semihard_triplets(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    margin: float = 1.0,
    distance_metric: DistanceMetric = "L2",
    across_replicas: bool = True,
) -> TripletResult:
    """What `triplet_semihard_loss` computes, with statistics and the costliest triplets."""
    return batch_triplets(
        labels,
        embeddings,
        positive="all",
        negative="semihard",
        margin=margin,
        distance_metric=distance_metric,
        across_replicas=across_replicas,
    )


def triplet_hard_loss(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    margin: float = 1.0,
    soft: bool = False,
    distance_metric: DistanceMetric = "L2",
    across_replicas: bool = True,
) -> tf.Tensor:
    """Batch-hard triplet loss (Hermans, Beyer, Leibe: In Defense of the Triplet Loss, 2017).

    For every anchor the farthest positive and the nearest negative: max(0, margin + D+ - D-), the
    mean over anchors that have both; 0 where none has.

    Args:
      labels: [b] or [b, 1] integers.
      embeddings: [b, D] floats.
      margin: in units of the distance, not negative.
      soft: softplus(D+ - D-) in place of the margin.
      distance_metric: "L2", "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.
      across_replicas: False mines within each replica.

    Returns:
      Scalar of the embeddings' type; of several replicas, this one's share.
    """
    return hard_triplets(
        labels,
        embeddings,
        margin=margin,
        soft=soft,
        distance_metric=distance_metric,
        across_replicas=across_replicas,
    ).loss


def triplet_semihard_loss(
    labels: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    margin: float = 1.0,
    distance_metric: DistanceMetric = "L2",
    across_replicas: bool = True,
) -> tf.Tensor:
    """Semi-hard triplet loss (Schroff, Kalenichenko, Philbin: FaceNet, 2015).

    For every ordered pair of a class, the nearest negative that is farther than the positive, or
    the farthest negative where none is: max(0, margin + D+ - D-), the mean over pairs whose anchor
    has a negative; 0 where there is none.

    Args:
      labels: [b] or [b, 1] integers.
      embeddings: [b, D] floats.
      margin: in units of the distance, not negative.
      distance_metric: "L2", "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.
      across_replicas: False mines within each replica.

    Returns:
      Scalar of the embeddings' type; of several replicas, this one's share.
    """
    return semihard_triplets(
        labels,
        embeddings,
        margin=margin,
        distance_metric=distance_metric,
        across_replicas=across_replicas,
    ).loss


def triplet_loss(
    anchor: tf.Tensor,
    positive: tf.Tensor,
    negative: tf.Tensor,
    *,
    margin: float = 1.0,
    distance_metric: DistanceMetric = "L2",
) -> tf.Tensor:
    """max(0, margin + D(anchor, positive) - D(anchor, negative)) of given triplets.

    Args:
      anchor: [N, D] floats.
      positive: [N, D] of the same type.
      negative: [N, D] of the same type.
      margin: in units of the distance, not negative.
      distance_metric: "L2", "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.

    Returns:
      [N] losses of the embeddings' type, not averaged and without regard to replicas.
    """
    margin = check_margin(margin)
    check_metric(distance_metric)
    given = [tf.convert_to_tensor(x) for x in (anchor, positive, negative)]
    for x in given:
        check_embeddings(x)
    dtype = given[0].dtype
    anchor, positive, negative = map(computable, given)
    difference = distance(anchor, positive, distance_metric) - distance(
        anchor, negative, distance_metric
    )
    return tf.cast(tf.nn.relu(tf.constant(margin, anchor.dtype) + difference), dtype)
