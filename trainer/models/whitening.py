"""A head that whitens a network's features by what varies within classes.

Directions in which photos of one class differ are shrunk. Before the first step that alone told
unseen classes apart much better than a pretrained network's features do, and training goes on from
there; of a trained network it did so again (docs/benchmarks.md). Hatch, Kajarekar, Stolcke:
Within-class covariance normalization, 2006; Mikolajczyk, Matas: Improving descriptors for fast tree
matching by optimal linear projection, 2007.
"""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer.models.embedding_model import HEAD, UNIT_FEATURES
from tripletmill.errors import UsageError

# Of the mean variance within classes, added to each direction's: few images tell little of many.
SHRINKAGE = 2.5


def features_of(model: keras.Model) -> keras.Model | None:
    """The part before a head that is to be whitened, [b, S, S, 3] -> [b, F]; None without one."""
    if UNIT_FEATURES not in {layer.name for layer in model.layers}:
        return None
    return keras.Model(model.inputs, model.get_layer(UNIT_FEATURES).output)


@contextlib.contextmanager
def own_head(model: keras.Model) -> Iterator[None]:
    """The head may be set within; what it was before comes back."""
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
    """An affine map after which what varies within classes varies alike in all directions.

    Args:
      features: [N, F], of any floating type.
      labels: [N] integers.
      dim: D, at most F; the D principal components of the whitened features are kept.
      shrinkage: share of the mean variance within classes that is added to each direction's.

    Returns:
      Kernel [F, D] and bias [D], float32. Over the N, features @ kernel + bias has mean 0 and rows
      whose squared length is 1 in the mean.

    Raises:
      UsageError: no class has two different images.
    """
    wide = features.astype(np.float64)
    names, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros([len(names), wide.shape[1]])
    np.add.at(sums, of, wide)
    within = wide - (sums / counts[:, None])[of]
    variances, directions = np.linalg.eigh(within.T @ within / len(wide))
    mean_variance = float(np.mean(variances))
    if not mean_variance > 0:
        raise UsageError(
            "a whitened head: no class has two different images; set build_model.whitened = False"
        )
    scales = (np.maximum(variances, 0) + shrinkage * mean_variance) ** -0.5
    whiten = (directions * scales) @ directions.T
    centre = wide.mean(axis=0)
    whitened = (wide - centre) @ whiten
    _, axes = np.linalg.eigh(whitened.T @ whitened)
    kernel = whiten @ axes[:, ::-1][:, :dim]
    kernel /= np.sqrt(np.mean(np.sum(((wide - centre) @ kernel) ** 2, axis=1)))
    return kernel.astype(np.float32), (-centre @ kernel).astype(np.float32)
