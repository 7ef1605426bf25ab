"""The losses as Keras losses: their configuration, saving, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.fixtures import triplet_oracle
from tripletmill.errors import UsageError
from tripletmill.losses.keras_losses import TripletHardLoss, TripletSemiHardLoss

CLASSES = np.array([0, 1, 0, 1, 0, 1, 2])
POINTS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


@keras.saving.register_keras_serializable(package="test_keras_losses")
def manhattan(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.abs(x - y), -1)


ORACLES = {
    TripletHardLoss: triplet_oracle.hard,
    TripletSemiHardLoss: triplet_oracle.semihard,
}
LOSSES = [
    TripletHardLoss(),
    TripletHardLoss(0.3, soft=True, distance_metric="angular", name="mine"),
    TripletSemiHardLoss(),
    TripletSemiHardLoss(0.3, "squared-L2"),
    TripletSemiHardLoss(distance_metric=manhattan),
]


def linear_model(loss: keras.losses.Loss) -> keras.Model:
    """A model whose outputs are its inputs, before it is trained."""
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(3, use_bias=False)])
    model.set_weights([np.eye(3)])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss)
    return model


def same(one: keras.losses.Loss, other: keras.losses.Loss) -> bool:
    return type(one) is type(other) and vars(one) == vars(other)


@pytest.mark.parametrize("loss", LOSSES)
def test_round_trips(loss):
    assert same(type(loss).from_config(loss.get_config()), loss)
    assert same(keras.losses.deserialize(keras.losses.serialize(loss)), loss)
    assert same(keras.losses.get(keras.losses.serialize(loss)), loss)


@pytest.mark.parametrize("loss", LOSSES[1::3])
def test_a_saved_model_goes_on_with_its_loss(loss, tmp_path):
    model = linear_model(loss)
    model.fit(POINTS, CLASSES, batch_size=7, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert same(loaded.loss, loss)
    after = [m.evaluate(POINTS, CLASSES, batch_size=7, verbose=0) for m in (model, loaded)]
    assert after[0] == after[1]


for_both = pytest.mark.parametrize("loss", [TripletHardLoss(), TripletSemiHardLoss()])


@for_both
def test_sample_weights_are_refused(loss):
    with pytest.raises(UsageError, match=f"{loss.name}: sample_weight has no meaning"):
        loss(CLASSES, tf.constant(POINTS), sample_weight=np.ones(7))
    for weights in ({"sample_weight": np.ones(7)}, {"class_weight": {0: 1.0, 1: 2.0, 2: 1.0}}):
        with pytest.raises(UsageError, match="sample_weight has no meaning"):
            linear_model(loss).fit(POINTS, CLASSES, verbose=0, **weights)


@for_both
def test_labels_that_are_floats_are_refused(loss):
    labels = CLASSES.astype(np.float32)
    with pytest.raises(UsageError, match="labels are float32: must be integers"):
        loss(labels, tf.constant(POINTS))
    with pytest.raises(UsageError, match="labels are float32: must be integers"):
        linear_model(loss).fit(POINTS, labels, verbose=0)


@for_both
def test_labels_that_float32_cannot_tell_apart(loss):
    """Float64 cannot tell the last ones apart either."""
    expected = ORACLES[type(loss)](CLASSES, POINTS, margin=1.0, metric="L2")
    for labels in (2**24 + CLASSES, 2**53 + CLASSES):
        assert float(loss(labels, tf.constant(POINTS))) == pytest.approx(expected, rel=1e-6)
        assert float(loss(labels[:, None], tf.constant(POINTS))) == pytest.approx(
            expected, rel=1e-6
        )
    evaluated = linear_model(loss).evaluate(POINTS, labels, verbose=0)
    assert evaluated == pytest.approx(expected, rel=1e-6)
