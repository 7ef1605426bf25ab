"""The embedding model, and the learning rate schedule that trains it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.models.embedding_model import build_model
from trainer.training.optimizers import WarmupCosine
from tripletmill.errors import UsageError


def images(size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)


def test_embeddings_have_unit_length():
    model = build_model(backbone="small_conv", image_size=16, embedding_dim=8)
    embeddings = model(images()).numpy()
    assert embeddings.shape == (3, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_without_a_head_it_is_the_backbone_scaled():
    model = build_model(backbone="small_conv", image_size=16, embedding_dim=None)
    features = model.get_layer(index=1)(images().astype(np.float32)).numpy()
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(model(images()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", [{"embedding_dim": 0}, {"dtype_policy": "mixed_float16"}])
def test_wrong_values(change):
    with pytest.raises(UsageError, match="|".join(f"{k} '?{v}" for k, v in change.items())):
        build_model(backbone="small_conv", image_size=16, **change)


def test_bfloat16_in_the_backbone_alone():
    """Weights and embedding are float32, and the global dtype policy does not change."""
    exact = build_model(backbone="small_conv", image_size=16, embedding_dim=8)
    coarse = build_model(
        backbone="small_conv", image_size=16, embedding_dim=8, dtype_policy="mixed_bfloat16"
    )
    coarse.set_weights(exact.get_weights())
    assert coarse.get_layer(index=1)(images().astype(np.float32)).dtype == tf.bfloat16
    assert {v.dtype for v in coarse.variables} == {"float32"}
    error = np.abs(coarse(images()) - exact(images())).max()
    assert 1e-5 < error < 0.05
    assert coarse(images()).dtype == tf.float32
    assert keras.config.dtype_policy().name == "float32"


def test_live_batch_norm_is_that_of_all_replicas():
    model = build_model(backbone="MobileNetV3Small", image_size=32, freeze_batch_norm=False)
    norms = [
        layer
        for layer in model.get_layer(index=1).layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert norms
    assert all(layer.synchronized for layer in norms)


def test_schedule_by_hand():
    """The rate rises to 1 over 2 steps, then falls along half a cosine over 4 steps."""
    schedule = WarmupCosine(peak=1.0, steps=6, warmup_steps=2)
    found = [float(schedule(step)) for step in range(8)]
    half = np.sqrt(0.5) / 2
    expected = [0.5, 1.0, 1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float(WarmupCosine(peak=2.0, steps=4)(0)) == 2.0


@pytest.mark.parametrize("arguments", [{"steps": 5, "warmup_steps": 5}, {"steps": 0}])
def test_wrong_schedule(arguments):
    with pytest.raises(UsageError, match="warmup_steps"):
        WarmupCosine(peak=1.0, **arguments)
