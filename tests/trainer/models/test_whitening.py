"""Whitened heads, compared with numpy's eigenvectors and by hand, and in a training run."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.test_main import arguments, run
from tests.trainer.test_main import weights as saved_weights
from trainer.data.reading import Reading
from trainer.evaluation.inference import SplitImages, compile_on_replicas
from trainer.models.embedding_model import build_model
from trainer.models.whitening import features_of, whitening
from trainer.retrieval.metrics import retrieval_metrics
from trainer.runs.checkpoints import Checkpoints
from tripletmill.errors import UsageError
from tripletmill.formats.index import load_index

WHITENED = ["build_model.whitened = True", "build_model.embedding_dim = 3"]


def scatter(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The scatter matrix within classes, one row at a time."""
    total = np.zeros([rows.shape[1]] * 2)
    for row, label in zip(rows, labels, strict=True):
        away = row - rows[labels == label].mean(axis=0)
        total += np.outer(away, away)
    return total / len(rows)


def test_by_hand():
    """Two classes at a distance of 2 have spreads of 3 and 1, which become equal."""
    features = np.array([[3, 1], [-3, 1], [3, -1], [-3, -1]], float)
    features = np.concatenate([features, features + np.array([0, 2])])
    labels = np.repeat([5, 9], 4)
    kernel, bias = whitening(features, labels, 2, shrinkage=0.0)
    mapped = features @ kernel + bias
    # Over the spreads 3 and 1, the features are +-1 and -2, 0, 0, 2; their mean square is 1 + 2.
    expected = np.stack([features[:, 0] / 3, features[:, 1] - 1], axis=1) / np.sqrt(3)
    np.testing.assert_allclose(mapped @ mapped.T, expected @ expected.T, atol=1e-6)
    [first] = whitening(features, labels, 1, shrinkage=0.0)[0].T
    np.testing.assert_allclose(np.abs(first), [0, 1 / np.sqrt(2)], atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 4))
def test_what_varies_within_classes_varies_alike(seed, dim, classes):
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.permutation(100)[:classes], 8)
    mixed = np.linalg.qr(rng.normal(size=(dim, dim)))[0] * rng.uniform(0.5, 2, dim)
    features = rng.normal(size=(len(labels), dim)) @ mixed.T + 3
    kernel, bias = whitening(features, labels, dim, shrinkage=1e-9)
    mapped = features @ kernel + bias
    within = scatter(mapped, labels)
    np.testing.assert_allclose(within, within[0, 0] * np.eye(dim), atol=1e-3 * within[0, 0])
    np.testing.assert_allclose(mapped.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.mean(np.sum(mapped**2, axis=1)), 1, rtol=1e-4)
    # With fewer outputs, these are the first principal components of all outputs.
    fewer = features @ whitening(features, labels, 1, shrinkage=1e-9)[0]
    _, vectors = np.linalg.eigh(mapped.T @ mapped)
    wanted = mapped @ vectors[:, -1]
    wanted /= np.sqrt(np.mean(wanted**2))
    found = (fewer - fewer.mean())[:, 0]
    np.testing.assert_allclose(found * np.sign(found @ wanted), wanted, atol=1e-3)


def test_shrinkage_is_a_share_of_the_mean_variance():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 6)
    features = rng.normal(size=(30, 4)) * [1, 2, 3, 4]
    kernel, _ = whitening(features, labels, 4, shrinkage=0.5)
    within = scatter(features, labels)
    wanted = np.linalg.inv(within + 0.5 * np.trace(within) / 4 * np.eye(4))
    found = kernel.astype(float) @ kernel.T
    np.testing.assert_allclose(found / found[0, 0], wanted / wanted[0, 0], atol=1e-5)


def test_classes_that_differ_little_are_told_apart():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(40), 10)
    features = rng.normal(size=(40, 8))[labels] + rng.normal(size=(400, 8)) * [9, 9, *[0.3] * 6]
    seen = labels < 20
    kernel, bias = whitening(features[seen], labels[seen], 8, shrinkage=0.001)
    before = retrieval_metrics(features[~seen], labels[~seen]).map_at_r
    after = retrieval_metrics((features @ kernel + bias)[~seen], labels[~seen]).map_at_r
    assert before < 0.4
    assert after > 0.75


def test_what_cannot_be_whitened():
    features = np.random.default_rng(0).normal(size=(6, 4))
    with pytest.raises(UsageError, match=r"no class has two .*build_model.whitened = False"):
        whitening(features, np.arange(6), 4)
    with pytest.raises(UsageError, match="no class has two different images"):
        whitening(np.repeat(features[:3], 2, axis=0), np.repeat(range(3), 2), 4)


def test_no_more_outputs_than_features():
    with pytest.raises(UsageError, match=r"embedding_dim 257: .* 256 features of small_conv"):
        build_model(backbone="small_conv", image_size=16, embedding_dim=257, whitened=True)


def test_before_training_it_only_turns_the_features():
    """So "model before training" in an evaluation stands for the backbone's features."""
    keras.utils.set_random_seed(0)
    whole = build_model(backbone="small_conv", image_size=16, embedding_dim=256, whitened=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    found, features = whole(images).numpy(), features_of(whole)(images).numpy()
    np.testing.assert_allclose(found @ found.T, features @ features.T, atol=1e-5)


def test_fewer_images_than_features():
    """Directions without any variance are stretched most, but not without limit."""
    features = np.random.default_rng(0).normal(size=(6, 9))
    kernel, bias = whitening(features, np.repeat(range(3), 2), 9)
    assert np.linalg.matrix_rank(kernel) == 9
    np.testing.assert_allclose((features @ kernel + bias).mean(axis=0), 0, atol=1e-6)


@pytest.mark.slow
def test_training_begins_with_it(data_dir, tmp_path):
    """At a learning rate of 0 the run ends with the whitened head, and resuming keeps it."""
    still = ["WarmupCosine.peak = 0.0", "head/SGD.learning_rate = 0.0", "train.evaluate_every = 1"]
    for steps in (3, 4):
        params = (*WHITENED, *still, "train.average_decay = None", f"STEPS = {steps}")
        run(*arguments(data_dir, tmp_path / "run", *params))
    model = whitened_model()
    path = tf.train.latest_checkpoint(str(tmp_path / "run" / "checkpoints"))
    assert path.endswith("ckpt-4")
    weights = [variable.value for variable in model.variables]
    tf.train.Checkpoint(model=weights).restore(path).expect_partial()
    assert_whitened(model, data_dir)


@pytest.mark.slow
def test_what_is_kept_is_whitened_anew_and_training_goes_on_with_its_own(data_dir, tmp_path):
    """On two replicas, with averaged weights; the number of evaluations changes nothing."""
    params = (*WHITENED, "make_strategy.cpu_replicas = 2", "train.keep_best = False")
    kept, trained = [], []
    for every in (2, 6):
        folder = tmp_path / str(every)
        run(*arguments(data_dir, folder, *params, f"train.evaluate_every = {every}"))
        model = whitened_model()
        assert Checkpoints(str(folder), model, writes=False).restore_best() == 6
        assert_whitened(model, data_dir)
        kept.append(model.get_layer("head").kernel.numpy())
        trained.append(saved_weights(folder))
    np.testing.assert_array_equal(*kept)
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        np.testing.assert_array_equal(value, trained[1][name], err_msg=name)
    heads = [value for value in trained[0].values() if value.shape == kept[0].shape]
    assert len(heads) >= 2  # the head and its average
    assert all(np.abs(head - kept[0]).max() > 0.01 for head in heads)


def whitened_model() -> keras.Model:
    return build_model(backbone="small_conv", image_size=16, embedding_dim=3, whitened=True)


def assert_whitened(model: keras.Model, data_dir) -> None:
    """Checks that the head whitens the model's features of the train split."""
    index = load_index(str(data_dir), "train")
    images = SplitImages(
        index, Reading().records(index), image_size=16, central_share=1.0, batch_size=36
    )
    forward = compile_on_replicas(tf.distribute.get_strategy(), features_of(model))
    features, rows = images.apply(forward, "train")
    kernel, bias = whitening(features, index.label[rows], 3)
    head = model.get_layer("head")
    np.testing.assert_allclose(head.kernel, kernel, atol=1e-4)
    np.testing.assert_allclose(head.bias, bias, atol=1e-4)
