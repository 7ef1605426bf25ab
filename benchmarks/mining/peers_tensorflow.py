"""The worker for the peers on TensorFlow: TensorFlow Addons and TensorFlow Similarity."""

import tensorflow as tf
import tensorflow_addons as tfa
import tensorflow_similarity
from tensorflow_similarity.losses import TripletLoss

from benchmarks.mining.steps import tensorflow_step
from benchmarks.mining.worker import Contestant, serve


def similarity(negative: str) -> TripletLoss:
    """Returns TensorFlow Similarity's loss with the farthest positive."""
    return TripletLoss(
        distance="euclidean",
        positive_mining_strategy="hard",
        negative_mining_strategy=negative,
        margin=1.0,
    )


CONTESTANTS: dict[str, Contestant] = {
    "tfa-hard": tensorflow_step(tfa.losses.triplet_hard_loss),
    "tfa-hard-jit": tensorflow_step(tfa.losses.triplet_hard_loss, jit_compile=True),
    "tfa-semihard": tensorflow_step(tfa.losses.triplet_semihard_loss),
    "tfa-semihard-jit": tensorflow_step(tfa.losses.triplet_semihard_loss, jit_compile=True),
    "similarity-hard": tensorflow_step(similarity("hard")),
    "similarity-semihard": tensorflow_step(similarity("semi-hard")),
}

if __name__ == "__main__":
    versions = {
        "tensorflow-addons": tfa.__version__,
        "tensorflow-similarity": tensorflow_similarity.__version__,
        "tensorflow": tf.__version__,
    }
    serve(CONTESTANTS, versions)
