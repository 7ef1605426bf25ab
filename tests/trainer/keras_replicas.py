"""Runs plain Keras's fit and evaluate on several replicas, for test_keras_replicas.py.

python -m tests.trainer.keras_replicas OUT REPLICAS LOSS-ROWS ...
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from tests.trainer.replicas import MARGIN, make_model, mirrored
from trainer.losses import TripletHardLoss, TripletSemiHardLoss

BATCH = 16
LOSSES = {"hard": TripletHardLoss, "semihard": TripletSemiHardLoss}


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(rows, 5)).astype(np.float32), rng.integers(0, 5, rows)


def fit(strategy: tf.distribute.Strategy, loss: str, rows: int) -> dict[str, np.ndarray]:
    """Trains one epoch at a learning rate of 0 and three more, and evaluates."""
    with strategy.scope():
        model = make_model("float32")
        model.compile(
            optimizer=keras.optimizers.SGD(0.0, momentum=0.9), loss=LOSSES[loss](margin=MARGIN)
        )
    batches = tf.data.Dataset.from_tensor_slices(data(rows)).batch(BATCH)
    frozen = model.fit(batches, verbose=0).history["loss"]
    model.optimizer.learning_rate = 0.05
    history = model.fit(batches, epochs=3, verbose=0).history["loss"]
    evaluated = model.evaluate(batches, verbose=0)
    return {
        "frozen": np.array(frozen),
        "history": np.array(history),
        "evaluated": np.array(evaluated),
        "weights": np.concatenate([w.ravel() for w in model.get_weights()]),
        "outputs": model(data(rows)[0]).numpy(),
    }


def main(out: str, replicas: str, *names: str) -> None:
    strategy = mirrored(int(replicas))
    found = {}
    for name in names:
        loss, rows = name.split("-")
        found |= {f"{name}/{key}": x for key, x in fit(strategy, loss, int(rows)).items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
