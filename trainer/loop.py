"""Several training steps in one call of TensorFlow, on all replicas."""

import dataclasses
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from trainer.input import SPARES
from trainer.losses import TripletResult

STATISTICS = ("loss", "active", "positive_distance", "negative_distance")


@dataclasses.dataclass(frozen=True)
class Loop:
    """What some steps gave.

    Attributes:
      statistics: means over the steps, by name.
      finite_steps: how many went by before the loss was not finite.
      input_seconds: spent waiting for batches, with nothing else to do; None where TensorFlow is
        asked for determinism, and refuses to look at the clock.
      replaced: images whose records were damaged, a spare in their place.
      black: of those the ones that had no spare left.
    """

    statistics: dict[str, float]
    finite_steps: int
    input_seconds: float | None
    replaced: int
    black: int


def make_loop(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    triplets: Callable[[tf.Tensor, tf.Tensor], TripletResult],
) -> Callable[[Iterator, int], Loop]:
    """A function that trains for some steps on what an iterator gives.

    Args:
      strategy: of the model and the iterator.
      model: [b, S, S, 3] uint8 -> [b, D].
      optimizer: built.
      triplets: of labels [b] and embeddings [b, D].

    Returns:
      A function (iterator over batches of `train_batches`, number of steps) -> Loop.
    """
    has_clock = _has_clock()

    def clock() -> tf.Tensor:
        return tf.timestamp() if has_clock else tf.constant(0.0, tf.float64)

    def replica_step(images: tf.Tensor, labels: tf.Tensor, spares: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            result = triplets(labels, model(images, training=True))
        gradients = tape.gradient(result.loss, model.trainable_variables)
        # Keras sums the gradients over replicas, as the replicas' shares of the loss ask for.
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        statistics = result.statistics()
        found = [statistics[name] for name in STATISTICS]
        found += [
            tf.math.count_nonzero(which, dtype=tf.int32) for which in (spares > 0, spares > SPARES)
        ]
        return tf.stack([tf.cast(number, tf.float32) for number in found])

    @tf.function
    def run_steps(iterator: Iterator, num_steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        total, finite_steps = tf.zeros([len(STATISTICS) + 2]), tf.constant(0)
        waited = tf.constant(0.0, tf.float64)
        for _ in tf.range(num_steps):
            # Waiting begins when the step before has ended: its numbers have to be here.
            with tf.device("CPU:0"), tf.control_dependencies([tf.identity(total)]):
                began = clock()
            with tf.control_dependencies([began]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                waited += clock() - began
            shares = strategy.run(replica_step, args=batch)
            total += strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)
            finite_steps += tf.cast(tf.math.is_finite(total[0]), tf.int32)
        return total, finite_steps, waited

    def run(iterator: Iterator, num_steps: int) -> Loop:
        found = run_steps(iterator, tf.constant(num_steps))
        total, finite_steps, waited = (tensor.numpy() for tensor in found)
        *sums, replaced, black = total.tolist()
        return Loop(
            {name: value / num_steps for name, value in zip(STATISTICS, sums, strict=True)},
            int(finite_steps),
            float(waited) if has_clock else None,
            int(replaced),
            int(black),
        )

    return run


def _has_clock() -> bool:
    try:
        tf.timestamp()
    except tf.errors.OpError:
        return False
    return True
