"""The triplet losses as Keras losses, for `model.compile` and `fit` on any number of replicas."""

from typing import Any

import keras
import tensorflow as tf

from tripletmill.errors import UsageError
from tripletmill.losses.arguments import (
    check_margin,
)
from tripletmill.losses.distances import DistanceMetric, check_metric
from tripletmill.losses.global_batch import _replicas, global_sum
from tripletmill.losses.triplet import triplet_hard_loss, triplet_semihard_loss


class _TripletLoss(keras.losses.Loss):
    """Keras's face of a loss over the whole batch, under `fit` on any number of replicas."""

    def __init__(self, *, margin: float, distance_metric: DistanceMetric, name: str | None) -> None:
        # Keras must not average: a scalar comes out, in parts that add up over replicas.
        super().__init__(name=name, reduction=None)
        self.margin = check_margin(margin)
        check_metric(distance_metric)
        self.distance_metric = distance_metric

    def __call__(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The loss of labels [b] or [b, 1] and embeddings [b, D], in parts equal on all replicas.

        Keras's own would cast labels to float32, where 2^24 and 2^24 + 1 are the same class.
        """
        if sample_weight is not None:
            raise UsageError(f"{self.name}: sample_weight has no meaning for mined triplets")
        y_pred = tf.convert_to_tensor(y_pred)
        if y_pred.dtype.size == 2:
            # As Keras's own: what is reported, and scaled, has more digits than the model.
            y_pred = tf.cast(y_pred, tf.float32)
        if tf.distribute.get_replica_context() is None:
            # Keras rehearses `fit` with labels averaged over the replicas, which are floats.
            y_true = tf.cast(y_true, tf.int64)
        return equal_on_all_replicas(self.call(y_true, y_pred))

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor; a callable metric must be registered with Keras."""
        metric = self.distance_metric
        return {
            "name": self.name,
            "margin": self.margin,
            "distance_metric": metric
            if isinstance(metric, str)
            else keras.saving.serialize_keras_object(metric),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_TripletLoss":
        """The inverse of get_config."""
        metric = config["distance_metric"]
        if not isinstance(metric, str):
            config = {**config, "distance_metric": keras.saving.deserialize_keras_object(metric)}
        return cls(**config)


@keras.saving.register_keras_serializable(package="tripletmill")
class TripletHardLoss(_TripletLoss):
    """`triplet_hard_loss` for `model.compile`; sample weights are refused."""

    def __init__(
        self,
        margin: float = 1.0,
        soft: bool = False,
        distance_metric: DistanceMetric = "L2",
        name: str | None = "triplet_hard_loss",
    ) -> None:
        super().__init__(margin=margin, distance_metric=distance_metric, name=name)
        self.soft = soft

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The share of this replica."""
        return triplet_hard_loss(
            y_true,
            y_pred,
            margin=self.margin,
            soft=self.soft,
            distance_metric=self.distance_metric,
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "soft": self.soft}


@keras.saving.register_keras_serializable(package="tripletmill")
class TripletSemiHardLoss(_TripletLoss):
    """`triplet_semihard_loss` for `model.compile`; sample weights are refused."""

    def __init__(
        self,
        margin: float = 1.0,
        distance_metric: DistanceMetric = "L2",
        name: str | None = "triplet_semihard_loss",
    ) -> None:
        super().__init__(margin=margin, distance_metric=distance_metric, name=name)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The share of this replica."""
        return triplet_semihard_loss(
            y_true, y_pred, margin=self.margin, distance_metric=self.distance_metric
        )


def equal_on_all_replicas(share: tf.Tensor) -> tf.Tensor:
    """Shares of a sum -> the same part of it on every replica.

    The gradient stays that of the share. Keras weighs the loss of each replica by its number of
    rows, which gives the true loss for equal parts only.
    """
    context = _replicas()
    if context is None:
        return share
    part = global_sum(share) / tf.cast(context.num_replicas_in_sync, share.dtype)
    return share + tf.stop_gradient(part - share)
