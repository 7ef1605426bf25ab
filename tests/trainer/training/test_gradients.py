"""Compares microbatches with the loss and the gradient of the whole batch.

The sums over replicas are tested in test_train_loop.py.
"""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.training.gradients import make_gradients
from tripletmill.losses.triplet import semihard_triplets

ROWS = 12


def data() -> tuple[tf.Tensor, tf.Tensor]:
    """Inputs [ROWS, 5] and labels [ROWS], three rows of each class."""
    inputs = np.random.default_rng(1).uniform(-1, 1, (ROWS, 5))
    return tf.constant(inputs), tf.constant(np.arange(ROWS) % 4)


def triplets(labels, embeddings):
    return semihard_triplets(labels, embeddings, margin=1.0)


def make_model(*layers: keras.layers.Layer) -> keras.Model:
    """Makes Dense layers with other layers between them; the weights are the same every time."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((5,), dtype="float64")
    for layer in (keras.layers.Dense(6, "tanh", dtype="float64"), *layers):
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(4, dtype="float64")(x))


@dataclasses.dataclass(frozen=True)
class Result:
    """The gradients of the weights, the embeddings, and the loss."""

    gradients: list[np.ndarray]
    embeddings: np.ndarray
    loss: float


def run(model: keras.Model, microbatches: int, times: int = 1) -> Result:
    """Runs some steps without changing the weights, and returns the result of the last one."""
    compute = make_gradients(model, triplets, microbatches=microbatches)

    @tf.function(autograph=False)
    def step(inputs, labels):
        gradients = compute(inputs, labels)
        return gradients.of_weights, gradients.embeddings, gradients.result.loss

    for _ in range(times):
        gradients, embeddings, loss = step(*data())
    return Result([g.numpy() for g in gradients], embeddings.numpy(), float(loss))


@pytest.mark.parametrize("microbatches", [2, 3, 12])
def test_exactly_those_of_the_whole_batch(microbatches):
    whole, parts = run(make_model(), 1), run(make_model(), microbatches)
    assert whole.loss > 0.1
    assert np.abs(whole.gradients[0]).max() > 1e-3
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-12)
    np.testing.assert_allclose(parts.embeddings, whole.embeddings, rtol=1e-12)
    for a, b in zip(parts.gradients, whole.gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)


def test_not_the_mean_of_the_losses_of_the_parts():
    """The mean of the parts' losses is another loss, so the test above can tell them apart."""
    inputs, labels = data()
    model = make_model()
    parts = [
        triplets(labels[i : i + 6], model(inputs[i : i + 6])).loss.numpy()
        for i in range(0, ROWS, 6)
    ]
    assert abs(np.mean(parts) - run(make_model(), 1).loss) > 1e-3


def test_both_passes_drop_the_same_units():
    """Compares the gradient with finite differences of the loss, all with the same masks."""
    model = make_model(keras.layers.Dropout(0.4, seed=5, dtype="float64"))
    state = [variable.numpy() for variable in model.non_trainable_variables]
    kernel = model.trainable_variables[0]

    def again(step: float) -> Result:
        for variable, value in zip(model.non_trainable_variables, state, strict=True):
            variable.assign(value)
        before = kernel.numpy()
        kernel.assign(before + step * direction)
        result = run(model, 3)
        kernel.assign(before)
        return result

    direction = np.random.default_rng(7).normal(size=kernel.shape)
    result = again(0.0)
    slope = (again(1e-6).loss - again(-1e-6).loss) / 2e-6
    assert abs(slope) > 1e-3
    np.testing.assert_allclose((result.gradients[0] * direction).sum(), slope, rtol=1e-6)
    assert not np.array_equal(model.non_trainable_variables[0].numpy(), state[0])
    # With other seeds the loss is different.
    assert abs(run(model, 3).loss - result.loss) > 1e-6


def test_parts_drop_different_units():
    """Two equal rows in different parts are embedded differently."""
    model = make_model(keras.layers.Dropout(0.5, seed=5, dtype="float64"))
    compute = make_gradients(model, triplets, microbatches=2)
    same = tf.ones([4, 5], tf.float64)
    embeddings = compute(same, tf.constant([0, 1, 0, 1])).embeddings.numpy()
    assert not np.allclose(embeddings[:2], embeddings[2:])


def test_statistics_of_live_batch_norm_take_one_step_by_the_mean_of_the_parts():
    momentum, times = 0.75, 3
    model = make_model(keras.layers.BatchNormalization(momentum=momentum, dtype="float64"))
    norm = model.layers[2]
    run(model, 3, times)
    features = model.layers[1](data()[0]).numpy().reshape(3, 4, 6)
    left = momentum**times
    np.testing.assert_allclose(norm.moving_mean, (1 - left) * features.mean((0, 1)), rtol=1e-10)
    variance = left * 1 + (1 - left) * features.var(1).mean(0)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-10)


@pytest.mark.parametrize("microbatches", [1, 3])
def test_frozen_statistics_stay_as_they_are(microbatches):
    model = make_model(keras.layers.BatchNormalization(dtype="float64", trainable=False))
    before = [variable.numpy() for variable in model.non_trainable_variables]
    run(model, microbatches, 2)
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("microbatches", [1, 3])
def test_sparse_gradients_come_dense_and_unused_weights_get_zeros(microbatches):
    rows = keras.Input((1,), dtype="int32")
    table = keras.layers.Embedding(20, 4, dtype="float64")
    unused = keras.layers.Dense(3, dtype="float64")
    model = keras.Model(rows, keras.layers.Flatten()(table(rows)))
    unused.build((None, 4))
    weights = model.trainable_variables
    chosen = tf.constant([[3], [3], [5], [7], [9], [5]])
    compute = make_gradients(model, triplets, microbatches=microbatches)
    (gradient,) = compute(chosen, tf.constant([0, 0, 1, 1, 2, 2])).of_weights
    assert gradient.shape == weights[0].shape
    taken = np.abs(gradient.numpy()).sum(1) > 0
    assert taken.any()
    assert not taken[[i for i in range(20) if i not in (3, 5, 7, 9)]].any()


MEMORY = """
import sys, numpy as np, resource, tensorflow as tf
from trainer.training.gradients import make_gradients
from tripletmill.losses.triplet import semihard_triplets
from trainer.models.embedding_model import build_model

model = build_model(backbone="small_conv", image_size=32, embedding_dim=32)
rows = 2048
images = tf.constant(np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), np.uint8))
labels = tf.range(rows) % 256
compute = make_gradients(
    model, lambda l, e: semihard_triplets(l, e, margin=0.2), microbatches=int(sys.argv[1]))
step = tf.function(lambda x, y: compute(x, y).of_weights, autograph=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(images, labels)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_is_that_of_a_part():
    def megabytes(microbatches: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(microbatches)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert megabytes(16) < megabytes(1) / 3
