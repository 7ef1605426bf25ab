"""Several training steps in one call of TensorFlow, on all replicas."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from trainer.data.input_pipeline import FALLBACKS
from trainer.training.gradients import Gradients
from trainer.training.optimizers import Optimizers
from trainer.workarounds import has_clock
from tripletmill.losses.triplet import STATISTICS

# Means of these are reported, followed by the counts of images with a damaged record.
MEANS = (*STATISTICS, "gradient_norm")

# Replica batch (images, labels, fallbacks) and whether the loss was finite before -> sums.
ReplicaStep = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class LastBatch:
    """The last batch of some steps, as the replicas of this host saw it.

    Attributes:
      embeddings: [b, D] float32, embeddings of this host's rows, in the order of the batch.
      positive: [b], the positive in the costliest triplet of each anchor, a row of the global
        batch.
      negative: [b], the negative in that triplet, a row of the global batch.
      term: [b] float32, what that triplet adds to the loss; minus infinity for an anchor without a
        triplet.
    """

    embeddings: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    term: np.ndarray


@dataclasses.dataclass(frozen=True)
class StepsResult:
    """The result of some steps.

    Attributes:
      statistics: means over the steps, by name.
      finite_steps: how many steps were done before the loss was not finite.
      not_finite: [b] bool, which embeddings of this host's rows are not finite in the first step
        whose loss is not finite.
      input_seconds: time spent waiting for batches while the devices were idle. None if
        determinism is switched on, because TensorFlow then refuses to read the clock.
      num_replaced: number of images with a damaged record.
      num_unreadable: how many of the replaced images are black, because none of their fallbacks
        could be read.
      last: the last batch.
    """

    statistics: dict[str, float]
    finite_steps: int
    not_finite: np.ndarray
    input_seconds: float | None
    num_replaced: int
    num_unreadable: int
    last: LastBatch


def make_train_steps(
    strategy: tf.distribute.Strategy,
    gradients: Callable[[tf.Tensor, tf.Tensor], Gradients],
    optimizers: Optimizers,
    *,
    batch_size: int,
    embedding_dim: int,
) -> Callable[[Iterator, int], StepsResult]:
    """Makes a function that trains for some steps on the batches of an iterator.

    Args:
      strategy: the strategy of the model and of the iterator.
      gradients: a function of images [b, S, S, 3] and labels [b], see `make_gradients`.
      optimizers: move the weights by the gradients.
      batch_size: b, rows of each replica.
      embedding_dim: D.

    Returns:
      A function (iterator over batches of `train_batches`, number of steps) -> StepsResult.
    """
    is_timed = has_clock()
    last = _LastBatchVariables(strategy, batch_size, embedding_dim)
    replica_step = _make_replica_step(gradients, optimizers, last, batch_size)

    def clock() -> tf.Tensor:
        return tf.timestamp() if is_timed else tf.constant(0.0, tf.float64)

    @tf.function
    def run_steps(iterator: Iterator, num_steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        total, finite_steps = tf.zeros([len(MEANS) + 2]), tf.constant(0)
        waited = tf.constant(0.0, tf.float64)
        for _ in tf.range(num_steps):
            # Waiting begins when the step before has ended, that is, when its sums are here.
            with tf.device("CPU:0"), tf.control_dependencies([tf.identity(total)]):
                began = clock()
            with tf.control_dependencies([began]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                waited += clock() - began
            with tf.control_dependencies([waited]):
                still_finite = tf.math.is_finite(total[0])
            sums = strategy.run(replica_step, args=(*batch, still_finite))
            total += strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)
            finite_steps += tf.cast(tf.math.is_finite(total[0]), tf.int32)
        return total, finite_steps, waited

    def run(iterator: Iterator, num_steps: int) -> StepsResult:
        tensors = run_steps(iterator, tf.constant(num_steps))
        total, finite_steps, waited = (tensor.numpy() for tensor in tensors)
        *sums, num_replaced, num_unreadable = total.tolist()
        return StepsResult(
            statistics={name: value / num_steps for name, value in zip(MEANS, sums, strict=True)},
            finite_steps=int(finite_steps),
            not_finite=last.not_finite(),
            input_seconds=float(waited) if is_timed else None,
            num_replaced=int(num_replaced),
            num_unreadable=int(num_unreadable),
            last=last.batch(),
        )

    return run


def _make_replica_step(
    gradients: Callable[[tf.Tensor, tf.Tensor], Gradients],
    optimizers: Optimizers,
    last: "_LastBatchVariables",
    batch_size: int,
) -> ReplicaStep:
    """Makes the step of one replica, which returns this replica's share of the sums [MEANS + 2]."""

    # Only the loop over steps needs AutoGraph. Without this line AutoGraph would also rewrite the
    # source of everything that a step calls, which takes a quarter of the time to the first step.
    @tf.autograph.experimental.do_not_convert
    def replica_step(
        images: tf.Tensor, labels: tf.Tensor, fallbacks: tf.Tensor, still_finite: tf.Tensor
    ) -> tf.Tensor:
        # The clock is read before the step begins, even if one thread runs all operations.
        with tf.control_dependencies([still_finite]):
            # The iterators of several workers do not know the size of a batch.
            images = tf.ensure_shape(images, [batch_size, *images.shape[1:]])
        result = gradients(images, tf.ensure_shape(labels, [batch_size]))
        norm = optimizers.apply(result.of_weights)
        last.assign(result, still_finite)
        statistics = result.result.statistics()
        context = tf.distribute.get_replica_context()
        numbers = [statistics[name] for name in STATISTICS]
        # The norm is equal on all replicas, and it is summed over them like the other numbers.
        numbers.append(norm / context.num_replicas_in_sync)
        numbers += [
            tf.math.count_nonzero(which, dtype=tf.int32)
            for which in (fallbacks > 0, fallbacks > FALLBACKS)
        ]
        return tf.stack([tf.cast(number, tf.float32) for number in numbers])

    return replica_step


class _LastBatchVariables:
    """Variables in which each replica keeps its part of the last step's batch."""

    def __init__(self, strategy: tf.distribute.Strategy, rows: int, dim: int) -> None:
        def per_replica(shape: list[int], dtype: tf.DType) -> tf.Variable:
            return tf.Variable(
                tf.zeros(shape, dtype),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.NONE,
            )

        self._strategy = strategy
        with strategy.scope():
            self._embeddings = per_replica([rows, dim], tf.float32)
            self._triplets = per_replica([2, rows], tf.int32)
            self._term = per_replica([rows], tf.float32)
            self._not_finite = per_replica([rows], tf.bool)

    def assign(self, gradients: Gradients, still_finite: tf.Tensor) -> None:
        """Sets the variables of the calling replica.

        Args:
          gradients: result of the replica's step.
          still_finite: scalar bool, whether the losses of all earlier steps were finite.
        """
        triplets = gradients.result.costliest
        embeddings = tf.cast(gradients.embeddings, tf.float32)
        self._embeddings.assign(embeddings)
        self._triplets.assign(tf.stack([tf.cast(triplets.positive, tf.int32), triplets.negative]))
        term = tf.where(triplets.valid, tf.cast(triplets.term, tf.float32), -float("inf"))
        self._term.assign(term)
        not_finite = tf.reduce_any(~tf.math.is_finite(embeddings), axis=1)
        self._not_finite.assign(tf.where(still_finite, not_finite, self._not_finite))

    def batch(self) -> LastBatch:
        """Returns the rows of all replicas of this host."""
        positive, negative = self._numpy(self._triplets, axis=1)
        return LastBatch(self._numpy(self._embeddings), positive, negative, self._numpy(self._term))

    def not_finite(self) -> np.ndarray:
        """Returns `StepsResult.not_finite` of all replicas of this host."""
        return self._numpy(self._not_finite)

    def _numpy(self, variable: tf.Variable, axis: int = 0) -> np.ndarray:
        parts = self._strategy.experimental_local_results(variable)
        return np.concatenate([part.numpy() for part in parts], axis=axis)
