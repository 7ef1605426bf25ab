"""The worker for this project's losses, one replica's share of a loss, and a plain matmul."""

import numpy as np
import tensorflow as tf

from benchmarks.mining.contestants import MATMUL, REPLICAS, share
from benchmarks.mining.steps import tensorflow_step
from benchmarks.mining.worker import Contestant, Step, serve
from tripletmill.losses.triplet import (
    Negative,
    Positive,
    batch_triplets,
    triplet_hard_loss,
    triplet_semihard_loss,
)
from tripletmill.losses.triplet_sums import TripletRule, triplet_sums

HARD: tuple[Positive, Negative] = ("hard", "hard")
SEMIHARD: tuple[Positive, Negative] = ("all", "semihard")


def matmul(labels: np.ndarray, embeddings: np.ndarray) -> Step:
    """Computes the products of all B x B pairs of rows, forward only."""

    @tf.function
    def compute(embeddings: tf.Tensor) -> tf.Tensor:
        return tf.matmul(embeddings, embeddings, transpose_b=True)

    rows = tf.constant(embeddings)

    def step() -> float:
        compute(rows)
        return 0.0

    return step


def triplets(positive: Positive, negative: Negative, *, jit_compile: bool = True) -> Contestant:
    """Returns a loss with a choice of positives and negatives; margin 1 and L2 by default."""

    def loss(labels: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
        return batch_triplets(
            labels, embeddings, positive=positive, negative=negative, jit_compile=jit_compile
        ).loss

    return tensorflow_step(loss)


def one_share(positive: str, negative: str, *, replicas: int) -> Contestant:
    """Returns one replica's share: the first B / replicas rows are anchors against all B rows."""
    rule = TripletRule(positive, negative, soft=False, metric="L2")

    def loss(labels: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
        anchors = tf.range(labels.shape[0] // replicas)
        margin = tf.constant(1.0)
        return triplet_sums(embeddings, labels, anchors, margin, rule=rule, jit_compile=True)[0]

    return tensorflow_step(loss)


CONTESTANTS: dict[str, Contestant] = {
    MATMUL: matmul,
    "hard": tensorflow_step(triplet_hard_loss),
    "hard-jit": tensorflow_step(triplet_hard_loss, jit_compile=True),
    "hard-no-xla": triplets(*HARD, jit_compile=False),
    "semihard": tensorflow_step(triplet_semihard_loss),
    "semihard-jit": tensorflow_step(triplet_semihard_loss, jit_compile=True),
    "semihard-no-xla": triplets(*SEMIHARD, jit_compile=False),
    "farthest": triplets("hard", "semihard"),
    **{share("hard", r): one_share(*HARD, replicas=r) for r in REPLICAS},
    **{share("semihard", r): one_share(*SEMIHARD, replicas=r) for r in REPLICAS},
}

if __name__ == "__main__":
    serve(CONTESTANTS, {"tensorflow": tf.__version__})
