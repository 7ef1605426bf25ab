"""A TensorFlow loss as a training step computes it."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.mining.worker import Contestant, Step


def tensorflow_step(
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], *, jit_compile: bool | None = None
) -> Contestant:
    """Loss and gradient of `loss(labels, embeddings)`, compiled for each batch size anew."""

    def contestant(labels: np.ndarray, embeddings: np.ndarray) -> Step:
        @tf.function(jit_compile=jit_compile)
        def compute(labels: tf.Tensor, embeddings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(embeddings)
                value = loss(labels, embeddings)
            return value, tape.gradient(value, embeddings)

        # Arguments, not constants, which TensorFlow would fold.
        inputs = tf.constant(labels), tf.constant(embeddings)
        return lambda: float(compute(*inputs)[0])

    return contestant
