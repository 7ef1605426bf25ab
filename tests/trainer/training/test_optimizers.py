"""Steps of the weights, compared with steps computed by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.training.optimizers import Optimizers
from tripletmill.errors import UsageError


def make_model() -> keras.Model:
    """Makes a model with a weight of 2 in the layer "features" and a weight of 5 in "head"."""
    inputs = keras.Input((1,))
    layers = [keras.layers.Dense(1, use_bias=False, name=name) for name in ("features", "head")]
    model = keras.Model(inputs, layers[1](layers[0](inputs)))
    model.set_weights([np.array([[2.0]]), np.array([[5.0]])])
    return model


def sgd(rate: float = 1.0, **options):
    return lambda: keras.optimizers.SGD(rate, **options)


def apply(optimizers: Optimizers, *gradients: float) -> float:
    return float(optimizers.apply([tf.constant([[g]], tf.float32) for g in gradients]))


def weights(model: keras.Model) -> list[float]:
    return [float(weight.squeeze()) for weight in model.get_weights()]


def test_clipped_to_the_norm_of_all_variables_together():
    model = make_model()
    optimizers = Optimizers(model, sgd(), clip_norm=1.0)
    assert apply(optimizers, 3.0, 4.0) == 5.0  # the norm before it is clipped
    np.testing.assert_allclose(weights(model), [2 - 3 / 5, 5 - 4 / 5], rtol=1e-6)
    apply(optimizers, 0.3, 0.4)  # a smaller norm is not clipped
    np.testing.assert_allclose(weights(model), [1.4 - 0.3, 4.2 - 0.4], rtol=1e-6)


def test_a_rate_of_its_own_for_the_head():
    model = make_model()
    optimizers = Optimizers(model, sgd(0.5), sgd(0.1))
    apply(optimizers, 1.0, 1.0)
    np.testing.assert_allclose(weights(model), [1.5, 4.9], rtol=1e-6)
    np.testing.assert_allclose(list(optimizers.learning_rates.values()), [0.5, 0.1], rtol=1e-6)
    assert list(optimizers.learning_rates) == ["learning_rate", "head_learning_rate"]


def test_clipping_spans_both_optimizers():
    model = make_model()
    apply(Optimizers(model, sgd(), sgd(), clip_norm=1.0), 3.0, 4.0)
    np.testing.assert_allclose(weights(model), [1.4, 4.2], rtol=1e-6)


def test_a_model_without_a_head_has_no_rate_for_it():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, name="features")(inputs))
    with pytest.raises(UsageError, match="make_head_optimizer: the model has no layer 'head'"):
        Optimizers(model, sgd(), sgd())


def test_moving_average():
    """In step n the decay is min(decay, (1 + n) / (10 + n)): 2/11, 3/12, then .25 here."""
    model = make_model()
    optimizers = Optimizers(model, sgd(), average_decay=0.25)
    expected, weight = 2.0, 2.0
    for decay in (2 / 11, 0.25, 0.25):
        apply(optimizers, 1.0, 0.0)
        weight -= 1.0
        expected = decay * expected + (1 - decay) * weight
    assert weights(model) == [-1.0, 5.0]
    with optimizers.averaged():
        np.testing.assert_allclose(weights(model), [expected, 5.0], rtol=1e-6)
    assert weights(model) == [-1.0, 5.0]


def test_weights_come_back_when_an_evaluation_fails():
    model = make_model()
    optimizers = Optimizers(model, sgd(), average_decay=0.5)
    apply(optimizers, 1.0, 1.0)
    before = weights(model)

    def fail() -> None:
        with optimizers.averaged():
            assert weights(model) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert weights(model) == before


def test_averages_begin_again_with_the_weights_of_another_run():
    model = make_model()
    optimizers = Optimizers(model, sgd(), average_decay=0.5)
    model.set_weights([np.array([[7.0]]), np.array([[8.0]])])
    optimizers.start_averages()
    with optimizers.averaged():
        assert weights(model) == [7.0, 8.0]


def test_without_an_average_nothing_is_swapped():
    model = make_model()
    optimizers = Optimizers(model, sgd())
    apply(optimizers, 1.0, 1.0)
    with optimizers.averaged():
        assert weights(model) == [1.0, 4.0]


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"clipnorm": 1.0}, "train.clip_norm"),
        ({"global_clipnorm": 1.0}, "train.clip_norm"),
        ({"clipvalue": 1.0}, "train.clip_norm"),
        ({"use_ema": True}, "train.average_decay"),
        ({"gradient_accumulation_steps": 2}, "train.microbatches"),
        ({"loss_scale_factor": 8.0}, "mixed_bfloat16"),
    ],
)
def test_what_keras_would_do_before_the_sum_is_refused(options, instead):
    with pytest.raises(UsageError, match=f"{next(iter(options))} does not work.*{instead}"):
        Optimizers(make_model(), sgd(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0.0}, "train.clip_norm 0.0: above 0"),
        ({"clip_norm": float("nan")}, "train.clip_norm nan: above 0"),
        ({"average_decay": 1.0}, "train.average_decay 1.0: 0 to below 1"),
        ({"average_decay": -0.1}, "train.average_decay -0.1: 0 to below 1"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        Optimizers(make_model(), sgd(), **options)


def test_an_optimizer_that_cannot_be_made_is_named():
    with pytest.raises(UsageError, match=r"train\.make_optimizer: "):
        Optimizers(make_model(), lambda: keras.optimizers.SGD(momentum=5))
