"""Turns a TensorFlow loss into a contestant, which computes it as a training step does."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.mining.worker import Contestant, Step


def tensorflow_step(
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], *, jit_compile: bool | None = None
) -> Contestant:
    """Returns a contestant that computes `loss(labels, embeddings)` and its gradient.

    It is compiled again for each batch size.
    """

    def contestant(labels: np.ndarray, embeddings: np.ndarray) -> Step:
        @tf.function(jit_compile=jit_compile)
        def compute(labels: tf.Tensor, embeddings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(embeddings)
                value = loss(labels, embeddings)
            return value, tape.gradient(value, embeddings)

        # Passed as arguments, because TensorFlow would fold constants.
        inputs = tf.constant(labels), tf.constant(embeddings)
        return lambda: float(compute(*inputs)[0])

    return contestant
