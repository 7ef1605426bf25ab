"""What a checkpoint brings back."""

import keras
import numpy as np
import pytest

from preprocessing.errors import UsageError
from trainer.checkpoints import Checkpoints


def make(units: int = 3):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dropout(0.5)]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def fit(model, optimizer, steps: int = 1) -> None:
    model.compile(optimizer=optimizer, loss="mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    model.fit(x, np.ones((8, model.output_shape[1])), epochs=steps, batch_size=8, verbose=0)


def test_everything_a_step_depends_on(tmp_path):
    """The random state of dropout too, which a plain checkpoint of the model leaves out."""
    model, optimizer = make()
    fit(model, optimizer)
    Checkpoints(str(tmp_path), model, optimizer).save(1, evaluated_step=0)
    fit(model, optimizer, steps=2)

    again, optimizer_again = make()
    checkpoints = Checkpoints(str(tmp_path), again, optimizer_again)
    assert checkpoints.restore_latest() == 1
    assert int(checkpoints.evaluated_step) == 0
    fit(again, optimizer_again, steps=2)
    for one, other in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(optimizer.variables, optimizer_again.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_best_is_the_highest_metric_and_not_the_last(tmp_path):
    model, optimizer = make()
    checkpoints = Checkpoints(str(tmp_path), model, optimizer)
    kept = {}
    for step, metric, best in [(1, 0.2, True), (2, 0.5, True), (3, 0.5, False), (4, 0.4, False)]:
        fit(model, optimizer)
        kept[step] = model.get_weights()[0]
        assert checkpoints.save_if_best(step, metric) is best
        checkpoints.save(step, evaluated_step=step)
    again, _ = make()
    assert Checkpoints(str(tmp_path), again).restore_best() == 2
    np.testing.assert_array_equal(again.get_weights()[0], kept[2])
    assert Checkpoints(str(tmp_path), *make()).restore_latest() == 4


def test_without_a_best_one_the_newest(tmp_path):
    model, optimizer = make()
    assert Checkpoints(str(tmp_path), model).restore_best() == 0
    assert Checkpoints(str(tmp_path), model, optimizer).restore_latest() == 0
    fit(model, optimizer)
    Checkpoints(str(tmp_path), model, optimizer).save(7, evaluated_step=7)
    again, _ = make()
    assert Checkpoints(str(tmp_path), again).restore_best() == 7
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_nan_is_never_best(tmp_path):
    assert not Checkpoints(str(tmp_path), make()[0]).save_if_best(1, float("nan"))


def test_another_model_is_refused(tmp_path):
    model, optimizer = make()
    checkpoints = Checkpoints(str(tmp_path), model, optimizer)
    checkpoints.save(1, evaluated_step=1)
    for restore in (
        Checkpoints(str(tmp_path), *make(5)).restore_latest,
        Checkpoints(str(tmp_path), make(5)[0]).restore_best,
    ):
        with pytest.raises(UsageError, match="does not fit the model"):
            restore()
