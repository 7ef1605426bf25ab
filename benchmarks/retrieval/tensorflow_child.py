"""Trains the plain network with one TensorFlow loss.

Our losses run on Keras 3, the losses of the peers on Keras 2, in the peers' environment.

python -m benchmarks.retrieval.tensorflow_child LOSS TASK OUTPUT
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.retrieval.plain import EPSILON, MARGIN, SIDE, Task, run

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def ours(positive: Any, negative: Any) -> Loss:
    """Returns this project's loss."""
    from tripletmill.losses.triplet import batch_triplets

    def loss(labels: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
        return batch_triplets(
            labels,
            embeddings,
            positive=positive,
            negative=negative,
            margin=MARGIN,
            distance_metric="squared-L2",
        ).loss

    return loss


def similarity(negative: str) -> Loss:
    """Returns TensorFlow Similarity's loss with the farthest positive."""
    from tensorflow_similarity.losses import TripletLoss

    return TripletLoss(
        distance="squared_euclidean",
        positive_mining_strategy="hard",
        negative_mining_strategy=negative,
        margin=MARGIN,
    )


def addons(name: str) -> Loss:
    """Returns the loss of this name from TensorFlow Addons."""
    import tensorflow_addons as tfa

    function = getattr(tfa.losses, name)
    return lambda labels, embeddings: function(
        labels, embeddings, MARGIN, distance_metric="squared-L2"
    )


LOSSES: dict[str, Callable[[], Loss]] = {
    "ours-semihard": lambda: ours("all", "semihard"),
    "ours-farthest": lambda: ours("hard", "semihard"),
    "ours-hard": lambda: ours("hard", "hard"),
    "tfa-semihard": lambda: addons("triplet_semihard_loss"),
    "tfa-hard": lambda: addons("triplet_hard_loss"),
    "similarity-farthest": lambda: similarity("semi-hard"),
    "similarity-hard": lambda: similarity("hard"),
}


def main() -> None:
    name, task, output = sys.argv[1], Task.load(Path(sys.argv[2])), Path(sys.argv[3])
    loss = LOSSES[name]()
    weights = [tf.Variable(value) for value in task.weights]
    optimizer = tf.keras.optimizers.Adam(epsilon=EPSILON)
    optimizer.build(weights)

    def forward(images: tf.Tensor) -> tf.Tensor:
        x = images[..., None]
        for kernel in weights[:-1]:
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        x = tf.reshape(x, [-1, weights[-1].shape[0]]) @ weights[-1]
        return tf.math.l2_normalize(x, axis=1)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(labels, forward(images))
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
        return value

    def train(images: np.ndarray, labels: np.ndarray, rate: float) -> float:
        optimizer.learning_rate.assign(rate)
        return float(step(tf.constant(images), tf.constant(labels, tf.int32)))

    embed = tf.function(forward, input_signature=[tf.TensorSpec([None, SIDE, SIDE])])
    run(task, train, lambda images: embed(tf.constant(images)).numpy(), output)


if __name__ == "__main__":
    main()
