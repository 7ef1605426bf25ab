"""Several training steps in one call of TensorFlow, on all replicas."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from trainer.data.input_pipeline import FALLBACKS
from trainer.training.gradients import Gradients
from trainer.training.optimizers import Optimizers
from tripletmill.losses.triplet_sums import Triplets

STATISTICS = ("loss", "active", "positive_distance", "negative_distance")


@dataclasses.dataclass(frozen=True)
class LastBatch:
    """The last batch of a loop, as this host's replicas saw it.

    Attributes:
      embeddings: [b, D] float32 of this host's rows, in the order of the batch.
      positive: [b] of each anchor's costliest triplet the positive, a row of the global batch.
      negative: [b] the negative.
      term: [b] float32, what the triplet costs; minus infinity where there is none.
    """

    embeddings: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    term: np.ndarray


@dataclasses.dataclass(frozen=True)
class StepsResult:
    """What some steps gave.

    Attributes:
      statistics: means over the steps, by name.
      finite_steps: how many went by before the loss was not finite.
      not_finite: [b] bool, of this host's rows of the step after those: whose embedding is not.
      input_seconds: spent waiting for batches, with nothing else to do; None where TensorFlow is
        asked for determinism, and refuses to look at the clock.
      replaced: number of images whose records were damaged, so that a fallback took their place.
      num_unreadable: number of these images whose fallbacks could not be read either.
      last: the last batch.
    """

    statistics: dict[str, float]
    finite_steps: int
    not_finite: np.ndarray
    input_seconds: float | None
    replaced: int
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
    """A function that trains for some steps on what an iterator gives.

    Args:
      strategy: of the model and the iterator.
      gradients: of images [b, S, S, 3] and labels [b], see `make_gradients`.
      optimizers: what they move.
      batch_size: b, rows of each replica.
      embedding_dim: D.

    Returns:
      A function (iterator over batches of `train_batches`, number of steps) -> Loop.
    """
    has_clock = _has_clock()
    last = _LastBatchVariables(strategy, batch_size, embedding_dim)

    def clock() -> tf.Tensor:
        return tf.timestamp() if has_clock else tf.constant(0.0, tf.float64)

    # Only the loop is for AutoGraph: of all that a step calls it would rewrite the source, which
    # takes a quarter of the time to the first step.
    @tf.autograph.experimental.do_not_convert
    def replica_step(
        images: tf.Tensor, labels: tf.Tensor, fallbacks: tf.Tensor, still_finite: tf.Tensor
    ) -> tf.Tensor:
        # Before the step begins the clock is looked at, also where one thread does all.
        with tf.control_dependencies([still_finite]):
            # Several workers' iterators forget the size.
            images = tf.ensure_shape(images, [batch_size, *images.shape[1:]])
        found = gradients(images, tf.ensure_shape(labels, [batch_size]))
        norm = optimizers.apply(found.of_weights)
        last.assign(found, still_finite)
        statistics = found.result.statistics()
        context = tf.distribute.get_replica_context()
        numbers = [statistics[name] for name in STATISTICS]
        # The same on every replica, and summed with the rest.
        numbers.append(norm / context.num_replicas_in_sync)
        numbers += [
            tf.math.count_nonzero(which, dtype=tf.int32)
            for which in (fallbacks > 0, fallbacks > FALLBACKS)
        ]
        return tf.stack([tf.cast(number, tf.float32) for number in numbers])

    @tf.function
    def run_steps(iterator: Iterator, num_steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        total, finite_steps = tf.zeros([len(STATISTICS) + 3]), tf.constant(0)
        waited = tf.constant(0.0, tf.float64)
        for _ in tf.range(num_steps):
            # Waiting begins when the step before has ended: its numbers have to be here.
            with tf.device("CPU:0"), tf.control_dependencies([tf.identity(total)]):
                began = clock()
            with tf.control_dependencies([began]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                waited += clock() - began
            with tf.control_dependencies([waited]):
                still_finite = tf.math.is_finite(total[0])
            shares = strategy.run(replica_step, args=(*batch, still_finite))
            total += strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)
            finite_steps += tf.cast(tf.math.is_finite(total[0]), tf.int32)
        return total, finite_steps, waited

    def run(iterator: Iterator, num_steps: int) -> StepsResult:
        found = run_steps(iterator, tf.constant(num_steps))
        total, finite_steps, waited = (tensor.numpy() for tensor in found)
        *sums, replaced, num_unreadable = total.tolist()
        names = (*STATISTICS, "gradient_norm")
        return StepsResult(
            {name: value / num_steps for name, value in zip(names, sums, strict=True)},
            int(finite_steps),
            last.not_finite(),
            float(waited) if has_clock else None,
            int(replaced),
            int(num_unreadable),
            last.batch(),
        )

    return run


class _LastBatchVariables:
    """What the last step leaves behind on each replica, not sent to any other."""

    def __init__(self, strategy: tf.distribute.Strategy, rows: int, dim: int) -> None:
        def kept(shape: list[int], dtype: tf.DType) -> tf.Variable:
            return tf.Variable(
                tf.zeros(shape, dtype),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.NONE,
            )

        self._strategy = strategy
        with strategy.scope():
            self._embeddings = kept([rows, dim], tf.float32)
            self._triplets = kept([2, rows], tf.int32)
            self._term = kept([rows], tf.float32)
            self._not_finite = kept([rows], tf.bool)

    def assign(self, found: Gradients, still_finite: tf.Tensor) -> None:
        """On a replica; still_finite: whether all losses before this step's were."""
        of: Triplets = found.result.costliest
        embeddings = tf.cast(found.embeddings, tf.float32)
        self._embeddings.assign(embeddings)
        self._triplets.assign(tf.stack([tf.cast(of.positive, tf.int32), of.negative]))
        self._term.assign(tf.where(of.valid, tf.cast(of.term, tf.float32), -float("inf")))
        bad = tf.reduce_any(~tf.math.is_finite(embeddings), axis=1)
        self._not_finite.assign(tf.where(still_finite, bad, self._not_finite))

    def batch(self) -> LastBatch:
        """Of all replicas of this host."""
        positive, negative = self._numpy(self._triplets, axis=1)
        return LastBatch(self._numpy(self._embeddings), positive, negative, self._numpy(self._term))

    def not_finite(self) -> np.ndarray:
        """Of all replicas of this host."""
        return self._numpy(self._not_finite)

    def _numpy(self, variable: tf.Variable, axis: int = 0) -> np.ndarray:
        parts = self._strategy.experimental_local_results(variable)
        return np.concatenate([part.numpy() for part in parts], axis=axis)


def _has_clock() -> bool:
    try:
        tf.timestamp()
    except tf.errors.OpError:
        return False
    return True
