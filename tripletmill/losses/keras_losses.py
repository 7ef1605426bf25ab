"""The triplet losses as Keras losses, for `model.compile` and `fit` on any number of replicas."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tripletmill.errors import UsageError
from tripletmill.losses.arguments import check_margin
from tripletmill.losses.distances import DistanceMetric, check_metric
from tripletmill.losses.global_batch import global_sum, replica_context
from tripletmill.losses.triplet import triplet_hard_loss, triplet_semihard_loss


class _TripletLoss(keras.losses.Loss):
    """Wraps a loss function of `tripletmill.losses.triplet` as a Keras loss.

    A subclass sets _loss_function.

    Attributes:
      margin: in units of the distance, 0 or more.
      distance_metric: see `tripletmill.losses.distances.distance`.
    """

    _loss_function: Callable[..., tf.Tensor]

    def __init__(self, *, margin: float, distance_metric: DistanceMetric, name: str | None) -> None:
        # Keras must not average: the loss is a scalar, and the replicas' parts of it add up.
        super().__init__(name=name, reduction=None)
        self.margin = check_margin(margin)
        check_metric(distance_metric)
        self.distance_metric = distance_metric

    def __call__(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Computes the loss.

        The method of Keras would cast labels to float32, in which 2^24 and 2^24 + 1 are one class.

        Args:
          y_true: [b] or [b, 1] integers, the labels.
          y_pred: [b, D] floats, the embeddings.
          sample_weight: must be None.

        Returns:
          Scalar. On several replicas it is the mean of the replicas' shares, so it is equal on all.

        Raises:
          UsageError: there are sample weights, or the labels or the embeddings have a wrong type or
            shape.
        """
        if sample_weight is not None:
            raise UsageError(
                f"{self.name}: sample_weight has no meaning for mined triplets; leave it out, and"
                " class_weight too"
            )
        y_pred = tf.convert_to_tensor(y_pred)
        if y_pred.dtype.size == 2:
            # Keras's losses do so too: the loss that is reported and scaled has more digits than
            # float16 and bfloat16, the types of the model.
            y_pred = tf.cast(y_pred, tf.float32)
        if tf.distribute.get_replica_context() is None:
            # Before `fit`, Keras calls the loss outside of the replicas, with labels that it
            # averaged over the replicas and that are floats therefore.
            y_true = tf.cast(y_true, tf.int64)
        return equal_on_all_replicas(self.call(y_true, y_pred))

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Computes this replica's share of the loss, a scalar."""
        return self._loss_function(y_true, y_pred, **self._options())

    def _options(self) -> dict[str, Any]:
        """The keyword arguments of the loss function."""
        return {"margin": self.margin, "distance_metric": self.distance_metric}

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor. A callable metric must be registered with Keras."""
        config = {"name": self.name, **self._options()}
        if not isinstance(self.distance_metric, str):
            config["distance_metric"] = keras.saving.serialize_keras_object(self.distance_metric)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_TripletLoss":
        """Builds the loss from what get_config returned."""
        metric = config["distance_metric"]
        if not isinstance(metric, str):
            config = {**config, "distance_metric": keras.saving.deserialize_keras_object(metric)}
        return cls(**config)


@keras.saving.register_keras_serializable(package="tripletmill")
class TripletHardLoss(_TripletLoss):
    """`triplet_hard_loss` for `model.compile`. Sample weights are refused.

    Args:
      margin: in units of the distance, 0 or more.
      soft: computes softplus(D+ - D-) instead of max(0, margin + D+ - D-).
      distance_metric: "L2", "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.
      name: of the loss in Keras's logs.

    Raises:
      UsageError: the margin or the metric is wrong.
    """

    _loss_function = staticmethod(triplet_hard_loss)

    def __init__(
        self,
        margin: float = 1.0,
        soft: bool = False,
        distance_metric: DistanceMetric = "L2",
        name: str | None = "triplet_hard_loss",
    ) -> None:
        super().__init__(margin=margin, distance_metric=distance_metric, name=name)
        self.soft = soft

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "soft": self.soft}


@keras.saving.register_keras_serializable(package="tripletmill")
class TripletSemiHardLoss(_TripletLoss):
    """`triplet_semihard_loss` for `model.compile`. Sample weights are refused.

    Args:
      margin: in units of the distance, 0 or more.
      distance_metric: "L2", "squared-L2", "angular" or a callable, see
        `tripletmill.losses.distances.distance`.
      name: of the loss in Keras's logs.

    Raises:
      UsageError: the margin or the metric is wrong.
    """

    _loss_function = staticmethod(triplet_semihard_loss)

    def __init__(
        self,
        margin: float = 1.0,
        distance_metric: DistanceMetric = "L2",
        name: str | None = "triplet_semihard_loss",
    ) -> None:
        super().__init__(margin=margin, distance_metric=distance_metric, name=name)


def equal_on_all_replicas(share: tf.Tensor) -> tf.Tensor:
    """Replaces each replica's share of the loss by the mean share.

    All replicas then report the same number. Keras weighs the loss of each replica by its number
    of rows, which gives the true loss only if the replicas' numbers are equal. The gradient stays
    that of the replica's own share.
    """
    context = replica_context()
    if context is None:
        return share
    mean = global_sum(share) / tf.cast(context.num_replicas_in_sync, share.dtype)
    return share + tf.stop_gradient(mean - share)
