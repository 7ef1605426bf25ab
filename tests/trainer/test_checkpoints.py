"""What a checkpoint brings back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from preprocessing.errors import UsageError
from trainer.checkpoints import Checkpoints
from trainer.updates import Updates


def make(units: int = 3):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dropout(0.5)]
    model = keras.Sequential(layers)
    return model, Updates(model, lambda: keras.optimizers.Adam(0.1))


def fit(model, updates, steps: int = 1) -> None:
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - 1.0) ** 2)
        updates.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]))


def test_everything_a_step_depends_on(tmp_path):
    """The random state of dropout too, which a plain checkpoint of the model leaves out."""
    model, updates = make()
    fit(model, updates)
    Checkpoints(str(tmp_path), model, updates).save(1, evaluated_step=0)
    fit(model, updates, steps=2)

    again, updates_again = make()
    checkpoints = Checkpoints(str(tmp_path), again, updates_again)
    assert checkpoints.restore_latest() == 1
    assert int(checkpoints.evaluated_step) == 0
    fit(again, updates_again, steps=2)
    for one, other in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(updates.variables, updates_again.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_best_is_the_highest_metric_and_not_the_last(tmp_path):
    model, updates = make()
    checkpoints = Checkpoints(str(tmp_path), model, updates)
    kept = {}
    for step, metric, best in [(1, 0.2, True), (2, 0.5, True), (3, 0.5, False), (4, 0.4, False)]:
        fit(model, updates)
        kept[step] = model.get_weights()[0]
        assert checkpoints.save_if_best(step, metric) is best
        checkpoints.save(step, evaluated_step=step)
    again, _ = make()
    assert Checkpoints(str(tmp_path), again).restore_best() == 2
    np.testing.assert_array_equal(again.get_weights()[0], kept[2])
    assert Checkpoints(str(tmp_path), *make()).restore_latest() == 4


def test_without_a_best_one_the_newest(tmp_path):
    model, updates = make()
    assert Checkpoints(str(tmp_path), model).restore_best() == 0
    assert Checkpoints(str(tmp_path), model, updates).restore_latest() == 0
    fit(model, updates)
    Checkpoints(str(tmp_path), model, updates).save(7, evaluated_step=7)
    again, _ = make()
    assert Checkpoints(str(tmp_path), again).restore_best() == 7
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_nan_is_never_best(tmp_path):
    assert not Checkpoints(str(tmp_path), make()[0]).save_if_best(1, float("nan"))


def test_another_model_is_refused(tmp_path):
    model, updates = make()
    checkpoints = Checkpoints(str(tmp_path), model, updates)
    checkpoints.save(1, evaluated_step=1)
    for restore in (
        Checkpoints(str(tmp_path), *make(5)).restore_latest,
        Checkpoints(str(tmp_path), make(5)[0]).restore_best,
    ):
        with pytest.raises(UsageError, match="does not fit the model"):
            restore()
