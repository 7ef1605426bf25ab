"""Within-class whitening: a linear head that whitens features by their variance within classes.

The head shrinks the directions in which photos of one class differ. On a pretrained network, before
the first training step, this alone separates unseen classes much better than the network's
features do. Training starts from there. Whitening the features of a trained network improved this
separation again (docs/benchmarks.md).

Sources: Hatch, Kajarekar, Stolcke: Within-class covariance normalization, 2006; Mikolajczyk, Matas:
Improving descriptors for fast tree matching by optimal linear projection, 2007.
"""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer.models.embedding_model import HEAD, UNIT_FEATURES
from tripletmill.errors import UsageError

# This multiple of the mean variance within classes is added to the variance of each direction,
# since few images give poor estimates of many variances.
SHRINKAGE = 2.5


def features_of(model: keras.Model) -> keras.Model | None:
    """The part of a model before a whitened head.

    Returns:
      A model from images [b, S, S, 3] to features [b, F] that shares the weights of `model`; None
      if `model` has no whitened head.
    """
    if UNIT_FEATURES not in {layer.name for layer in model.layers}:
        return None
    return keras.Model(model.inputs, model.get_layer(UNIT_FEATURES).output)


@contextlib.contextmanager
def restored_head(model: keras.Model) -> Iterator[None]:
    """Restores the weights of the head at the end, so that they may be changed within."""
    variables = model.get_layer(HEAD).variables
    before = [tf.identity(variable.value) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def whitening(
    features: np.ndarray, labels: np.ndarray, dim: int, *, shrinkage: float = SHRINKAGE
) -> tuple[np.ndarray, np.ndarray]:
    """An affine map after which the variance within classes is the same in all directions.

    Args:
      features: [N, F] of any float type.
      labels: [N] integers.
      dim: D, at most F; the D principal components of the whitened features are kept.
      shrinkage: this multiple of the mean variance within classes is added to the variance of each
        direction, 0 or more; with 0 the variances become exactly the same.

    Returns:
      Kernel [F, D] and bias [D], float32. Over the N features, features @ kernel + bias has mean 0
      and a mean squared length of 1.

    Raises:
      UsageError: no class has two different images.
    """
    wide = features.astype(np.float64)
    names, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros([len(names), wide.shape[1]])
    np.add.at(sums, class_of, wide)
    within = wide - (sums / counts[:, None])[class_of]
    variances, directions = np.linalg.eigh(within.T @ within / len(wide))
    mean_variance = float(np.mean(variances))
    if not mean_variance > 0:
        raise UsageError(
            "the head cannot be whitened, since no class has two different images; set"
            " build_model.whitened = False"
        )
    scales = (np.maximum(variances, 0) + shrinkage * mean_variance) ** -0.5
    whiten = (directions * scales) @ directions.T
    centre = wide.mean(axis=0)
    whitened = (wide - centre) @ whiten
    _, axes = np.linalg.eigh(whitened.T @ whitened)
    kernel = whiten @ axes[:, ::-1][:, :dim]
    kernel /= np.sqrt(np.mean(np.sum(((wide - centre) @ kernel) ** 2, axis=1)))
    return kernel.astype(np.float32), (-centre @ kernel).astype(np.float32)
