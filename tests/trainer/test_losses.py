"""The losses against a brute-force oracle and by hand."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.errors import UsageError
from tests.trainer import triplet_oracle
from trainer.losses import hard_triplets, semihard_triplets

METRICS = ("L2", "squared-L2", "angular")
LOSSES = ((hard_triplets, triplet_oracle.hard), (semihard_triplets, triplet_oracle.semihard))


def random_batch(labels, *, seed=0, dim=5, dtype=np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.asarray(labels, np.int64), rng.normal(size=(len(labels), dim)).astype(dtype)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("loss", "oracle"), LOSSES)
@pytest.mark.parametrize(
    "labels",
    [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 0, 0, 1, 2, 2, 3],  # unbalanced, with lone images
        [7, 3, 7, 3, 3, 9, 9, 7, 3],  # not contiguous
        [0, 1, 2, 3],  # no positive
        [5, 5, 5],  # no negative
        [0],
        [0, 0],
    ],
)
def test_values_equal_the_oracle(loss, oracle, labels, metric):
    labels, embeddings = random_batch(labels)
    result = loss(tf.constant(labels), tf.constant(embeddings), margin=0.7, distance_metric=metric)
    expected = oracle(labels, embeddings, margin=0.7, metric=metric)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=16),
    seed=st.integers(0, 2**32 - 1),
    margin=st.floats(0, 3),
)
def test_any_labels(labels, seed, margin):
    labels, embeddings = random_batch(labels, seed=seed, dtype=np.float32)
    for loss, oracle in LOSSES:
        value = loss(labels, tf.constant(embeddings), margin=margin).loss
        expected = oracle(labels, embeddings, margin=margin, metric="L2")
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_soft_margin():
    labels, embeddings = random_batch([0, 0, 1, 1, 1, 2])
    expected = triplet_oracle.hard(labels, embeddings, margin=0, metric="L2", soft=True)
    np.testing.assert_allclose(
        hard_triplets(labels, tf.constant(embeddings), soft=True).loss, expected, rtol=1e-12
    )
    assert np.isfinite(hard_triplets(labels, tf.constant(1e30 * embeddings), soft=True).loss)


def test_by_hand():
    """Points on a line: class 0 at 0 and 2, class 1 at 3 and 7; margin 2, L2.

    Hard: anchor 0: 2 + 2 - 3 = 1; 2: 2 + 2 - 1 = 3; 3: 2 + 4 - 1 = 5; 7: 2 + 4 - 5 = 1.
    Semi-hard: 0 -> 2, negative 3 at 3: 1; 2 -> 0, negative 7 at 5 (3 is nearer than 2): 0;
    3 -> 7 at 4, none beyond, farthest negative 0 at 3: 3; 7 -> 3 at 4, negative 2 at 5: 1.
    """
    labels = [0, 0, 1, 1]
    points = tf.constant([[0.0], [2.0], [3.0], [7.0]])
    hard = hard_triplets(labels, points, margin=2.0)
    np.testing.assert_allclose(hard.costliest.term, [1, 3, 5, 1])
    assert float(hard.loss) == 2.5
    semihard = semihard_triplets(labels, points, margin=2.0)
    np.testing.assert_allclose(semihard.costliest.term, [1, 0, 3, 1])
    assert float(semihard.loss) == 1.25
    statistics = {name: float(value) for name, value in semihard.statistics().items()}
    assert statistics == pytest.approx(
        {"loss": 1.25, "active": 0.75, "positive_distance": 3.0, "negative_distance": 4.0}
    )


def test_semihard_negative_is_strictly_farther():
    """Anchor 0: the positive and the negative at -2 are equally far, so it is the one at 5.

    Terms, margin 4, for 0 -> 2: 4 + 2 - 5 = 1; for 2 -> 0: 4 + 2 - 3 = 3, 5 being 3 away.
    """
    result = semihard_triplets([0, 0, 1, 2], tf.constant([[0.0], [2.0], [-2.0], [5.0]]), margin=4.0)
    np.testing.assert_allclose(
        tf.boolean_mask(result.costliest.term, result.costliest.valid), [1, 3]
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("loss", [hard_triplets, semihard_triplets])
def test_gradients_equal_finite_differences(loss, metric):
    labels, start = random_batch([0, 0, 1, 1, 1, 2, 2], seed=3, dim=3)

    def value(x: np.ndarray) -> float:
        return float(loss(labels, tf.constant(x), margin=0.5, distance_metric=metric).loss)

    x = tf.constant(start)
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = loss(labels, x, margin=0.5, distance_metric=metric).loss
    gradient = tape.gradient(result, x).numpy()
    for i in np.ndindex(*start.shape):
        step = np.zeros_like(start)
        step[i] = 1e-6
        expected = (value(start + step) - value(start - step)) / 2e-6
        assert gradient[i] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("loss", [hard_triplets, semihard_triplets])
@pytest.mark.parametrize("make", [np.zeros, np.ones])
def test_equal_and_zero_embeddings_have_finite_gradients(loss, metric, make):
    x = tf.constant(make((6, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = loss([0, 0, 1, 1, 2, 3], x, margin=1.0, distance_metric=metric).loss
    assert float(result) == pytest.approx(1.0, abs=1e-6)
    assert np.isfinite(tape.gradient(result, x)).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("loss", [hard_triplets, semihard_triplets])
def test_nan_is_not_hidden(loss, metric):
    labels, embeddings = random_batch([0, 0, 1, 1, 2, 2])
    embeddings[3, 1] = np.nan
    assert np.isnan(loss(labels, tf.constant(embeddings), distance_metric=metric).loss)


def test_unknown_metric_names_the_known_ones():
    with pytest.raises(UsageError, match=r"L1.*one of L2, squared-L2, angular"):
        hard_triplets([0, 0], tf.zeros([2, 2]), distance_metric="L1")
