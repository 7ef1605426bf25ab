"""The losses equal those of a brute-force oracle and those computed by hand."""

import functools
import inspect

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import triplet_oracle
from tripletmill.errors import UsageError
from tripletmill.losses import triplet_sums
from tripletmill.losses.triplet import (
    NEGATIVES,
    POSITIVES,
    batch_triplets,
    hard_triplets,
    semihard_triplets,
    triplet_hard_loss,
    triplet_loss,
    triplet_semihard_loss,
)

METRICS = ("L2", "squared-L2", "angular")
HARD = {"positive": "hard", "negative": "hard"}
SEMIHARD = {"positive": "all", "negative": "semihard"}
RULES = {"hard": HARD, "soft": {**HARD, "soft": True}, "semihard": SEMIHARD}

LABELS = {
    "p x k": np.repeat(np.arange(6), 4),
    "shuffled": [7, 3, 7, 3, 3, 9, 9, 7, 3],
    "unbalanced": [0] * 17 + [1] * 2 + [2, 3, 4],
    "alone": [0, 0, 1, 2, 3],
    "one class": [5, 5, 5],
    "no positive": [0, 1, 2, 3],
    "one": [0],
    "two alike": [0, 0],
    "two": [0, 1],
    "three": [0, 0, 1],
}


def normal(labels, *, seed=0, dim=5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(labels), dim))


def outlier(x: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(x))[:, None] == len(x) // 2, 1e6, x)


SHAPES = {
    "normal": lambda x: x,
    "unit": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "scaled": lambda x: 200 * x,
    "tiny": lambda x: 1e-9 * x,
    "outlier": outlier,
    "duplicates": lambda x: x[np.arange(len(x)) // 3],
    "near duplicates": lambda x: x[:1] + 1e-4 * x,
    "ties": lambda x: np.round(x),
    "equal": np.ones_like,
    "zero": np.zeros_like,
}


def manhattan(x, y):
    return tf.reduce_sum(tf.abs(x - y), -1)


def numpy_manhattan(x, y):
    return np.abs(x - y).sum(-1)


def assert_within(value, low, high, *, tolerance):
    slack = tolerance * max(1.0, abs(low), abs(high))
    assert low - slack <= float(value) <= high + slack


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_within_the_bounds_of_rounding(rule, metric, shape):
    for labels in LABELS.values():
        x = SHAPES[shape](normal(labels)).astype(np.float32)
        value = batch_triplets(
            labels, x, margin=0.7, distance_metric=metric, jit_compile=False, **RULES[rule]
        ).loss
        low, high = triplet_oracle.bounds(
            labels,
            x,
            loss="semihard" if rule == "semihard" else "hard",
            soft=rule == "soft",
            margin=0.7,
            metric=metric,
        )
        assert_within(value, low, high, tolerance=2e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("labels", ["p x k", "unbalanced", "alone", "one"])
def test_float64_equals_the_oracle_under_xla(rule, metric, labels):
    labels = LABELS[labels]
    x = normal(labels)
    value = batch_triplets(labels, x, margin=0.7, distance_metric=metric, **RULES[rule]).loss
    expected = triplet_oracle.loss(labels, x, margin=0.7, metric=metric, **RULES[rule])
    assert value.dtype == tf.float64
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nonzero_mean", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("negative", NEGATIVES)
@pytest.mark.parametrize("positive", POSITIVES)
def test_every_strategy_equals_the_oracle(positive, negative, soft, nonzero_mean):
    options = {"positive": positive, "negative": negative, "soft": soft, "margin": 0.7}
    options["nonzero_mean"] = nonzero_mean
    for labels in LABELS.values():
        for metric in METRICS:
            x = normal(labels, seed=1)
            result = batch_triplets(labels, x, distance_metric=metric, jit_compile=False, **options)
            expected = triplet_oracle.loss(labels, x, metric=metric, **options)
            np.testing.assert_allclose(result.loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_metric_may_be_a_callable(rule, jit_compile):
    labels = LABELS["unbalanced"]
    x = normal(labels)
    value = batch_triplets(
        labels, x, distance_metric=manhattan, jit_compile=jit_compile, **RULES[rule]
    ).loss
    expected = triplet_oracle.loss(labels, x, margin=1.0, metric=numpy_manhattan, **RULES[rule])
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def cosine(x, y):
    """The angular distance, but undefined at zero."""
    return 1 - tf.reduce_sum(x * y, -1) / (tf.norm(x, axis=-1) * tf.norm(y, axis=-1))


def euclidean(x, y):
    """The L2 distance, but without a finite gradient between equal points."""
    return tf.norm(x - y, axis=-1)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_metric_may_be_undefined_where_no_triplet_is(rule, jit_compile):
    for rows in (100,) if jit_compile else (8, 64, 100):  # XLA takes 5 s for each size
        labels = np.arange(rows) % (rows // 3)  # some classes have one more than others
        x = normal(labels)
        for metric, name in ((cosine, "angular"), (euclidean, "L2")):

            def loss(x, metric, labels=labels):
                options = {"distance_metric": metric, "jit_compile": jit_compile}
                return batch_triplets(labels, x, **options, **RULES[rule]).loss

            np.testing.assert_allclose(loss(x, metric), loss(x, name), rtol=1e-10)
            np.testing.assert_allclose(
                gradient_of(lambda x, f=loss, m=metric: f(x, m), x),
                gradient_of(lambda x, f=loss, m=name: f(x, m), x),
                atol=1e-12,
            )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3), ("float32", 1e-6)]
)
@pytest.mark.parametrize("loss", [triplet_hard_loss, triplet_semihard_loss])
def test_types_are_kept_and_16_bit_floats_are_computed_in_float32(loss, dtype, tolerance):
    labels = LABELS["p x k"]
    x = tf.cast(normal(labels), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(labels, x, margin=0.7)
    gradient = tape.gradient(value, x)
    assert value.dtype == gradient.dtype == tf.as_dtype(dtype)
    exact = tf.cast(x, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(exact)
        expected = loss(labels, exact, margin=0.7)
    np.testing.assert_allclose(float(value), float(expected), rtol=tolerance)
    np.testing.assert_allclose(
        tf.cast(gradient, tf.float64), tape.gradient(expected, exact), atol=tolerance
    )


# Computed with TensorFlow Addons 0.23 on TensorFlow 2.15: the losses hard, hard with soft=True, and
# semi-hard.
ADDONS = {
    "L2": (2.9073879718780518, 2.058124542236328, 0.8837950229644775),
    "squared-L2": (12.285259246826172, 11.285344123840332, 0.47821176052093506),
    "angular": (1.930768370628357, 1.267773151397705, 0.9726242423057556),
}


@pytest.mark.parametrize("metric", METRICS)
def test_values_equal_tensorflow_addons(metric):
    labels = np.repeat(np.arange(6), 4)
    x = np.random.default_rng(7).normal(size=(24, 8)).astype(np.float32)
    values = (
        triplet_hard_loss(labels, x, distance_metric=metric),
        triplet_hard_loss(labels, x, soft=True, distance_metric=metric),
        triplet_semihard_loss(labels, x, distance_metric=metric),
    )
    np.testing.assert_allclose(values, ADDONS[metric], rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=24),
    seed=st.integers(0, 2**32 - 1),
    margin=st.floats(0, 3),
    metric=st.sampled_from(METRICS),
    rule=st.sampled_from(sorted(RULES)),
)
def test_any_labels(labels, seed, margin, metric, rule):
    x = normal(labels, seed=seed)
    options = {"margin": margin, **RULES[rule]}
    value = batch_triplets(labels, x, distance_metric=metric, jit_compile=False, **options).loss
    expected = triplet_oracle.loss(labels, x, metric=metric, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=24),
    seed=st.integers(0, 2**32 - 1),
    rule=st.sampled_from(sorted(RULES)),
)
def test_neither_order_nor_names_of_classes_matter(labels, seed, rule):
    x, rng = normal(labels, seed=seed), np.random.default_rng(seed)
    order, names = rng.permutation(len(labels)), rng.integers(-(2**60), 2**60, 6)
    loss = functools.partial(batch_triplets, jit_compile=False, **RULES[rule])
    renamed = loss(names[labels][order], x[order]).loss
    np.testing.assert_allclose(renamed, loss(labels, x).loss, rtol=1e-12)


def test_labels_of_any_integer_type_and_size():
    x = tf.constant([[0.0], [2.0], [3.0], [7.0]])
    expected = float(triplet_hard_loss([0, 0, 1, 1], x))
    for labels in (
        np.array([0, 0, 1, 1], np.uint8),
        np.array([[4], [4], [-4], [-4]], np.int16),
        np.array([0, 0, 2**32 - 1, 2**32 - 1], np.uint32),
        np.array([2**24, 2**24, 2**24 + 1, 2**24 + 1]),
        np.array([2**40, 2**40, 2**41, 2**41]),  # their lower 32 bits are equal
        np.array([2**62, 2**62, 2**62 + 1, 2**62 + 1]),
    ):
        assert float(triplet_hard_loss(labels, x)) == expected


def test_by_hand():
    """Points on a line: class 0 is at 0 and 2, class 1 at 3 and 7. The margin is 2, the metric L2.

    Hard: anchor 0: 2 + 2 - 3 = 1; 2: 2 + 2 - 1 = 3; 3: 2 + 4 - 1 = 5; 7: 2 + 4 - 5 = 1.
    Semi-hard: 0 -> 2, negative 3 at 3: 1; 2 -> 0, negative 7 at 5 (3 is nearer than 2): 0;
    3 -> 7 at 4, none beyond, farthest negative 0 at 3: 3; 7 -> 3 at 4, negative 2 at 5: 1.
    """
    labels = [0, 0, 1, 1]
    points = tf.constant([[0.0], [2.0], [3.0], [7.0]])
    hard = hard_triplets(labels, points, margin=2.0)
    np.testing.assert_allclose(hard.costliest.term, [1, 3, 5, 1])
    np.testing.assert_allclose(hard.costliest.positive, [1, 0, 3, 2])
    np.testing.assert_allclose(hard.costliest.negative, [2, 2, 1, 1])
    assert float(hard.loss) == 2.5
    semihard = semihard_triplets(labels, points, margin=2.0)
    np.testing.assert_allclose(semihard.costliest.term, [1, 0, 3, 1])
    np.testing.assert_allclose(semihard.costliest.negative, [2, 3, 0, 1])
    assert float(semihard.loss) == 1.25
    statistics = {name: float(value) for name, value in semihard.statistics().items()}
    assert statistics == pytest.approx(
        {"loss": 1.25, "active": 0.75, "positive_distance": 3.0, "negative_distance": 4.0}
    )


def test_semihard_negative_is_strictly_farther():
    """For anchor 0, the positive and the negative at -2 are equally far; so it takes the one at 5.

    The margin is 4. The term of 0 -> 2 is 4 + 2 - 5 = 1. The term of 2 -> 0 is 4 + 2 - 3 = 3, since
    the negative at 5 is 3 away.
    """
    result = semihard_triplets([0, 0, 1, 2], tf.constant([[0.0], [2.0], [-2.0], [5.0]]), margin=4.0)
    np.testing.assert_allclose(
        tf.boolean_mask(result.costliest.term, result.costliest.valid), [1, 3]
    )


@pytest.mark.parametrize("positive", POSITIVES)
@pytest.mark.parametrize("negative", NEGATIVES)
def test_costliest_triplets_are_triplets_of_that_cost(positive, negative):
    labels = np.array(LABELS["unbalanced"])
    x = normal(labels)
    costliest = batch_triplets(
        labels, x, positive=positive, negative=negative, jit_compile=False
    ).costliest
    valid = costliest.valid.numpy()
    anchors = np.flatnonzero(valid)
    assert set(anchors) <= set(range(19))  # the last three have no positive
    positives, negatives = costliest.positive.numpy()[valid], costliest.negative.numpy()[valid]
    assert (labels[positives] == labels[anchors]).all()
    assert (positives != anchors).all()
    assert (labels[negatives] != labels[anchors]).all()
    terms = triplet_loss(x[anchors], x[positives], x[negatives])
    np.testing.assert_allclose(costliest.term.numpy()[valid], terms, rtol=1e-12)


def test_explicit_triplets():
    anchor, positive = np.array([[0.0, 0], [1, 1]]), np.array([[3.0, 4], [1, 1]])
    negative = np.array([[0.0, 5.5], [1, 4]])
    loss = functools.partial(triplet_loss, anchor, positive, negative)
    np.testing.assert_allclose(loss(), [0.5, 0])
    np.testing.assert_allclose(loss(margin=3.5), [3, 0.5])
    np.testing.assert_allclose(loss(distance_metric="squared-L2"), [0, 0])
    assert triplet_loss(*np.ones([3, 2, 4], np.float16)).dtype == tf.float16
    assert triplet_loss(*np.ones([3, 0, 4], np.float32)).shape == [0]


def gradient_of(loss, x) -> np.ndarray:
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x)
    return tape.gradient(value, x).numpy()


def assert_gradient_by_differences(loss, start):
    gradient = gradient_of(loss, start)
    for i in np.ndindex(*start.shape):
        step = np.zeros_like(start)
        step[i] = 1e-6
        expected = (float(loss(start + step)) - float(loss(start - step))) / 2e-6
        assert gradient[i] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("metric", [*METRICS, manhattan])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_finite_differences_under_xla(rule, metric):
    labels = [0, 0, 1, 1, 1, 2, 2]
    start = normal(labels, seed=3, dim=3)
    options = {"margin": 0.5, "distance_metric": metric, **RULES[rule]}
    assert_gradient_by_differences(lambda x: batch_triplets(labels, x, **options).loss, start)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("negative", NEGATIVES)
@pytest.mark.parametrize("positive", POSITIVES)
def test_gradients_of_every_strategy(positive, negative, soft):
    labels = [0, 0, 1, 1, 1, 2, 2]
    options = {"positive": positive, "negative": negative, "soft": soft, "jit_compile": False}

    def loss(x):
        return batch_triplets(labels, x, nonzero_mean=True, **options).loss

    assert_gradient_by_differences(loss, normal(labels, seed=4, dim=3))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("positive", POSITIVES)
@pytest.mark.parametrize("negative", NEGATIVES)
def test_gradients_are_finite_everywhere(positive, negative, metric):
    options = {"positive": positive, "negative": negative, "distance_metric": metric}
    labels = LABELS["unbalanced"]
    for shape in SHAPES.values():
        x = shape(normal(labels)).astype(np.float32)
        x[3] = 0
        gradient = gradient_of(
            lambda x: batch_triplets(labels, x, jit_compile=False, **options).loss, x
        )
        assert np.isfinite(gradient).all()


def test_gradient_of_equal_points_by_hand():
    """Two classes are at one point: every term is the margin, and no direction is better."""
    for loss in (triplet_hard_loss, triplet_semihard_loss):
        x = np.ones([4, 3], np.float32)
        assert float(loss([0, 0, 1, 1], x, margin=0.25)) == 0.25
        np.testing.assert_array_equal(gradient_of(lambda x, f=loss: f([0, 0, 1, 1], x), x), 0 * x)


def test_near_duplicates_keep_their_precision():
    """The points are 1000 and 1000.001. By their squares, their distance would be 0 or 0.25.

    The margin is 3, and the terms are 3 + 0.001 - 3 and 3 + 0.001 - 2.999, up to the rounding of
    1000.001 to float32.
    """
    x = np.array([[1000.0], [1000.001], [1003.0]], np.float32)
    exact = triplet_oracle.hard([0, 0, 1], x, margin=3.0, metric="L2")
    assert float(triplet_hard_loss([0, 0, 1], x, margin=3.0)) == pytest.approx(exact, rel=1e-6)
    assert exact == pytest.approx(0.0015, abs=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_soft_margin_does_not_overflow(metric):
    labels = LABELS["p x k"]
    x = outlier(200 * normal(labels)).astype(np.float32)
    value = triplet_hard_loss(labels, x, soft=True, distance_metric=metric)
    expected = triplet_oracle.hard(labels, x, margin=0, metric=metric, soft=True)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(
        gradient_of(lambda x: triplet_hard_loss(labels, x, soft=True, distance_metric=metric), x)
    ).all()


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("metric", [*METRICS, manhattan])
@pytest.mark.parametrize("rule", RULES)
def test_nan_is_not_hidden_wherever_it_is(rule, metric, jit_compile):
    labels = [0, 0, 1, 1, 2]  # the last row is the anchor of no triplet
    options = {"distance_metric": metric, "jit_compile": jit_compile, **RULES[rule]}
    for row in range(5):
        for bad in (np.nan, np.inf, -np.inf):
            x = normal(labels).astype(np.float32)
            x[row, 1] = bad
            x[4] += 100  # far from all others
            assert np.isnan(batch_triplets(labels, x, **options).loss)


def test_squares_that_overflow_are_not_hidden_either():
    x = np.array([[0, 0], [1, 0], [0, 1], [1e20, 0]], np.float32)
    assert np.isnan(triplet_hard_loss([0, 0, 1, 1], x))
    assert np.isfinite(triplet_hard_loss([0, 0, 1, 1], x, distance_metric="angular"))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_tiles_do_not_show(monkeypatch, rule, jit_compile):
    labels = np.random.default_rng(0).integers(0, 9, 150)
    x = normal(labels)
    options = {"jit_compile": jit_compile, **RULES[rule]}

    def value_and_gradient():
        triplet_sums._compiled.cache_clear()
        return gradient_of(lambda x: batch_triplets(labels, x, **options).loss, x), [
            batch_triplets(labels, x, **options).costliest.term.numpy()
        ]

    whole = value_and_gradient()
    monkeypatch.setattr(triplet_sums, "TILE_SIZE", 1)  # three tiles of 50 anchors
    in_tiles = value_and_gradient()
    triplet_sums._compiled.cache_clear()
    np.testing.assert_allclose(in_tiles[0], whole[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(in_tiles[1], whole[1], rtol=1e-12)
    expected = triplet_oracle.loss(labels, x, margin=1.0, metric="L2", **RULES[rule])
    value = batch_triplets(labels, x, **options).loss
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_a_batch_of_nothing():
    x = tf.zeros([0, 4])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = triplet_semihard_loss(tf.zeros([0], tf.int32), x)
    assert float(value) == 0
    assert tape.gradient(value, x).shape == [0, 4]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_batch_size_may_be_unknown(jit_compile):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 5])])
    def loss(labels, x):
        return batch_triplets(labels, x, jit_compile=jit_compile).loss

    for labels in (LABELS["p x k"], LABELS["unbalanced"], []):
        x = normal(labels).astype(np.float32)
        expected = triplet_oracle.semihard(labels, x, margin=1.0, metric="L2")
        np.testing.assert_allclose(loss(np.array(labels), x), expected, rtol=1e-5)


def test_second_derivatives_are_refused():
    x = tf.constant(normal([0, 0, 1, 1]))
    with tf.GradientTape() as outer:
        outer.watch(x)
        slope = tf.reduce_sum(tf.constant(gradient_of(lambda x: tf.reduce_sum(x), x)) * x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = triplet_hard_loss([0, 0, 1, 1], x)
        penalty = slope + tf.reduce_sum(inner.gradient(loss, x) ** 2)
    with pytest.raises(UsageError, match="no second derivative"):
        outer.gradient(penalty, x)


def test_a_metric_with_variables_is_refused():
    weights = tf.Variable(np.ones(5))

    def metric(x, y):
        return tf.reduce_sum(weights * tf.abs(x - y), -1)

    with pytest.raises(UsageError, match="distance_metric reads variables"):
        triplet_hard_loss([0, 0, 1, 1], normal([0, 0, 1, 1]), distance_metric=metric)


@pytest.mark.parametrize(
    ("labels", "x", "options", "message"),
    [
        (
            [0, 0],
            np.zeros([2, 2]),
            {"distance_metric": "L1"},
            r"L1.*must be one of L2, squared-L2, ang",
        ),
        ([0, 0], np.zeros([2, 2]), {"margin": -1}, "margin -1: must be a number, 0 or more"),
        (
            [0, 0],
            np.zeros([2, 2]),
            {"margin": float("nan")},
            "margin nan: must be a number, 0 or more",
        ),
        (
            [0, 0],
            np.zeros([2, 2]),
            {"margin": float("inf")},
            "margin inf: must be a number, 0 or more",
        ),
        ([0, 0], np.zeros([2, 2]), {"margin": None}, "margin None: must be a number, 0 or more"),
        ([[0, 1], [1, 0]], np.zeros([2, 2]), {}, r"labels have the shape \(2, 2\).* not one-hot"),
        ([0.0, 0.0], np.zeros([2, 2]), {}, "labels are float32: must be integers"),
        ([0, 0, 1], np.zeros([2, 2]), {}, "3 labels for 2 embeddings"),
        ([0, 0], np.zeros([2, 2], np.int64), {}, "embeddings are int64: must be floats"),
        ([0, 0], np.zeros([2]), {}, r"embeddings have the shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("loss", [triplet_hard_loss, triplet_semihard_loss])
def test_errors_of_use(loss, labels, x, options, message):
    with pytest.raises(UsageError, match=message):
        loss(labels, x, **options)


@pytest.mark.parametrize("option", ["positive", "negative"])
def test_unknown_strategy_names_the_known_ones(option):
    with pytest.raises(UsageError, match=f"{option} 'soft': must be one of all, hard"):
        batch_triplets([0, 0], np.zeros([2, 2]), **{**HARD, option: "soft"})


LOSSES = [(triplet_hard_loss, hard_triplets), (triplet_semihard_loss, semihard_triplets)]


@pytest.mark.parametrize(("loss", "triplets"), LOSSES)
def test_a_loss_shows_and_takes_the_parameters_of_its_triplets(loss, triplets):
    assert inspect.signature(loss).parameters == inspect.signature(triplets).parameters
    for function in (loss, triplets):
        with pytest.raises(TypeError, match="unexpected keyword argument 'marign'"):
            function([0, 0], np.zeros([2, 2]), marign=1.0)
