"""Triplet losses over the global batch.

  loss = triplet_semihard_loss(labels, embeddings, margin=0.2)
  result = semihard_triplets(labels, embeddings, margin=0.2)  # .loss, .statistics(), .costliest
  model.compile(loss=TripletSemiHardLoss(margin=0.2), optimizer=...)

If there are several replicas, a loss is this replica's share: the sum over its own anchors, divided
by the count over all replicas. The shares add up to the loss of the global batch, and their
gradients add up to its gradient. docs/losses.md has formulas, edge cases and a worked example.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, get_args

import tensorflow as tf

from tripletmill.losses import global_batch
from tripletmill.losses.arguments import (
    as_float32_or_float64,
    check_choice,
    check_embeddings,
    check_labels_and_embeddings,
    check_margin,
    flat_labels,
)
from tripletmill.losses.distances import DistanceMetric, check_metric, distance
from tripletmill.losses.triplet_sums import SUMS, TripletRule, Triplets, triplet_sums

Positive = Literal["all", "hard", "easy"]
Negative = Literal["all", "hard", "semihard", "band"]
POSITIVES, NEGATIVES = get_args(Positive), get_args(Negative)

# Names of what `TripletResult.statistics` returns, in this order.
STATISTICS = ("loss", "active", "positive_distance", "negative_distance")
_Parameters = ParamSpec("_Parameters")


@dataclasses.dataclass(frozen=True)
class TripletResult:
    """A loss, and the triplets that it consists of.

    Attributes:
      loss: scalar of the embeddings' type, this replica's share. It is 0 if there is no triplet.
      sums: [5] sums over this replica's triplets, in the order of
        `tripletmill.losses.triplet_sums.SUMS`.
      count: scalar, the number of triplets of all replicas, at least 1.
      costliest: for each of this replica's anchors [b], its triplet that costs most. The triplets
        are rows of the global batch. If the replicas mine apart, these rows are right only if all
        replicas bring equally many.
    """

    loss: tf.Tensor
    sums: tf.Tensor
    count: tf.Tensor
    costliest: Triplets

    def statistics(self) -> dict[str, tf.Tensor]:
        """Scalars that, summed over the replicas, describe the global batch.

        Returns:
          loss: as above.
          active: the share of triplets whose term is above zero, 0 to 1.
          positive_distance: the mean distance of anchor and positive.
          negative_distance: the mean distance of anchor and negative.
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
    """Triplet loss over a batch, for any rules of choosing positives and negatives.

    D+ is the distance of anchor and positive, D- the distance of anchor and negative.

    "hard" is from Hermans, Beyer, Leibe: In Defense of the Triplet Loss, 2017; so is the batch-all
    loss, which is positive="all", negative="all", nonzero_mean=True. "semihard" is from Schroff,
    Kalenichenko, Philbin: FaceNet, 2015. "easy" is from Xuan, Stylianou, Pless: Improved Embeddings
    with Easy Positive Triplet Mining, 2020.

    Args:
      labels: [b] or [b, 1] integers.
      embeddings: [b, D] float16, bfloat16, float32 or float64. For the first two, the loss is
        computed in float32.
      positive: the positives of each anchor: "all", the farthest ("hard") or the nearest ("easy").
      negative: the negatives for each of these positives: "all"; the nearest ("hard"); the nearest
        that is farther than the positive or, if there is none, the farthest ("semihard"); the
        nearest that is farther than the positive by less than the margin ("band").
      margin: in units of the distance, 0 or more.
      soft: the term of a triplet is softplus(D+ - D-) instead of max(0, margin + D+ - D-).
      nonzero_mean: divides the sum by the number of terms above zero instead of all triplets.
      distance_metric: "L2", "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.
      across_replicas: if False, each replica mines within its own rows.
      jit_compile: if False, XLA is not used. This is several times slower, and meant for platforms
        that lack XLA.

    Returns:
      The loss, its statistics and the costliest triplets. An anchor without a positive or without a
      negative contributes nothing and is not counted. If no triplet is left, as in an empty batch,
      the loss is 0. It is NaN if an embedding is not finite or if, with L2 or squared-L2, its
      square overflows. There is no second derivative.

    Raises:
      UsageError: an argument has a wrong value, type or shape.
    """
    check_choice("positive", positive, POSITIVES)
    check_choice("negative", negative, NEGATIVES)
    margin = check_margin(margin)
    check_metric(distance_metric)
    labels, embeddings = flat_labels(labels), tf.convert_to_tensor(embeddings)
    check_labels_and_embeddings(labels, embeddings)
    dtype, embeddings = embeddings.dtype, as_float32_or_float64(embeddings)
    batch = global_batch.gather(labels, embeddings, across_replicas=across_replicas)
    total, sums, costliest = triplet_sums(
        batch.embeddings,
        batch.labels,
        batch.rows,
        tf.constant(margin, embeddings.dtype),
        rule=TripletRule(positive, negative, bool(soft), distance_metric),
        jit_compile=jit_compile,
    )
    counts = tf.maximum(global_batch.global_sum(sums, across_replicas=across_replicas), 1.0)
    active, count = counts[SUMS.index("active")], counts[SUMS.index("triplets")]
    loss = total / (active if nonzero_mean else count)
    costliest = dataclasses.replace(
        costliest,
        positive=costliest.positive + batch.row_offset,
        negative=costliest.negative + batch.row_offset,
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
    """Computes `triplet_hard_loss` with its statistics and the triplets themselves.

    See `triplet_hard_loss` for the arguments and errors, and `batch_triplets` for edge cases.
    """
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
    """Computes `triplet_semihard_loss` with its statistics and the costliest triplets.

    See `triplet_semihard_loss` for the arguments and errors, and `batch_triplets` for edge cases.
    """
    return batch_triplets(
        labels,
        embeddings,
        positive="all",
        negative="semihard",
        margin=margin,
        distance_metric=distance_metric,
        across_replicas=across_replicas,
    )


def _with_parameters_of(
    triplets: Callable[_Parameters, TripletResult],
) -> Callable[[Callable[..., tf.Tensor]], Callable[_Parameters, tf.Tensor]]:
    """Gives a loss, which passes all its arguments on to `triplets`, the signature of `triplets`.

    Editors, type checkers and inspect.signature then show its parameters. The linter does not see
    them; so D417, which compares a docstring with the parameters, is off for the two losses below.
    """

    def decorate(loss: Callable[..., tf.Tensor]) -> Callable[_Parameters, tf.Tensor]:
        signature = inspect.signature(triplets).replace(return_annotation=tf.Tensor)
        loss.__signature__ = signature  # type: ignore[attr-defined]
        return loss

    return decorate


@_with_parameters_of(hard_triplets)
def triplet_hard_loss(*args: tf.Tensor, **options: Any) -> tf.Tensor:  # noqa: D417
    """Batch-hard triplet loss (Hermans, Beyer, Leibe: In Defense of the Triplet Loss, 2017).

    Each anchor has one term, for its farthest positive and its nearest negative: max(0, margin + D+
    - D-). D+ and D- are the distances of the anchor to the positive and to the negative. The loss
    is the mean over the anchors that have both a positive and a negative. It is 0 if no anchor has.

    Args:
      labels: [b] or [b, 1] integers.
      embeddings: [b, D] floats.
      margin: in units of the distance, 0 or more. The default is 1.
      soft: the term is softplus(D+ - D-) instead, without a margin. The default is False.
      distance_metric: "L2" (the default), "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.
      across_replicas: if False, each replica mines within its own rows. The default is True.

    Returns:
      Scalar of the embeddings' type. On several replicas, it is this replica's share.

    Raises:
      UsageError: an argument has a wrong value, type or shape.
    """
    return hard_triplets(*args, **options).loss


@_with_parameters_of(semihard_triplets)
def triplet_semihard_loss(*args: tf.Tensor, **options: Any) -> tf.Tensor:  # noqa: D417
    """Semi-hard triplet loss (Schroff, Kalenichenko, Philbin: FaceNet, 2015).

    Each ordered pair of rows of one class, an anchor and a positive, has one term: max(0, margin +
    D+ - D-). D+ and D- are the distances of the anchor to the positive and to the negative. The
    negative is the nearest one that is farther than the positive or, if there is none, the farthest
    one. The loss is the mean over the pairs whose anchor has a negative. It is 0 if there is none.

    Args:
      labels: [b] or [b, 1] integers.
      embeddings: [b, D] floats.
      margin: in units of the distance, 0 or more. The default is 1.
      distance_metric: "L2" (the default), "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.
      across_replicas: if False, each replica mines within its own rows. The default is True.

    Returns:
      Scalar of the embeddings' type. On several replicas, it is this replica's share.

    Raises:
      UsageError: an argument has a wrong value, type or shape.
    """
    return semihard_triplets(*args, **options).loss


def triplet_loss(
    anchor: tf.Tensor,
    positive: tf.Tensor,
    negative: tf.Tensor,
    *,
    margin: float = 1.0,
    distance_metric: DistanceMetric = "L2",
) -> tf.Tensor:
    """Triplet loss of given triplets: max(0, margin + D(anchor, positive) - D(anchor, negative)).

    Args:
      anchor: [N, D] floats.
      positive: [N, D] floats of the anchor's type.
      negative: [N, D] floats of the anchor's type.
      margin: in units of the distance, 0 or more.
      distance_metric: "L2", "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.

    Returns:
      [N] losses of the embeddings' type. They are not averaged, and replicas play no role.

    Raises:
      UsageError: an argument has a wrong value, type or shape.
    """
    margin = check_margin(margin)
    check_metric(distance_metric)
    triplets = [tf.convert_to_tensor(x) for x in (anchor, positive, negative)]
    for embeddings in triplets:
        check_embeddings(embeddings)
    dtype = triplets[0].dtype
    anchor, positive, negative = map(as_float32_or_float64, triplets)
    difference = distance(anchor, positive, distance_metric) - distance(
        anchor, negative, distance_metric
    )
    return tf.cast(tf.nn.relu(tf.constant(margin, anchor.dtype) + difference), dtype)
