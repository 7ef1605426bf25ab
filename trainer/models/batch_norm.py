"""Batch norm of a network: frozen in inference mode together with dropout, or live on all replicas.

Calling a network with `training=False` inside another network does not freeze it. Keras 3 hands an
outer `training=True` on to every layer of a functional model, whatever the inner call says.
"""

from collections.abc import Callable
from typing import Any

import keras

# The subclasses keep Keras's class names because a weights file names a layer by its class. So the
# same files fit with and without freezing. They are registered under this project's package.


@keras.saving.register_keras_serializable(package="tripletmill")
class BatchNormalization(keras.layers.BatchNormalization):
    """Normalises by the moving statistics and never changes them; gamma and beta train."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises `inputs`, whatever `training` says."""
        return super().call(inputs, training=False, mask=mask)


@keras.saving.register_keras_serializable(package="tripletmill")
class Dropout(keras.layers.Dropout):
    """Drops nothing."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Hands `inputs` on, whatever `training` says."""
        return super().call(inputs, training=False)


_FROZEN: dict[Any, Any] = {
    keras.layers.BatchNormalization: BatchNormalization,
    keras.layers.Dropout: Dropout,
}


def freeze_batch_norm(model: keras.Model) -> keras.Model:
    """Copies a functional model, with its batch norm and dropout always in inference mode.

    Args:
      model: a functional model; it is not changed.

    Returns:
      The same network with the same weights; `training=True` changes none of its outputs.
    """

    def copy(layer: keras.Layer) -> keras.Layer:
        return _FROZEN.get(type(layer), type(layer)).from_config(layer.get_config())

    return _cloned(model, copy)


def synchronize_batch_norm(model: keras.Model) -> keras.Model:
    """Copies a functional model, with batch norm over the batches of all replicas together.

    Without this, each replica normalises by its own rows and keeps its own statistics, and only the
    statistics of the first replica are saved.

    Args:
      model: a functional model; it is not changed.

    Returns:
      The same network with the same weights.
    """

    def copy(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config["synchronized"] = True
        return type(layer).from_config(config)

    return _cloned(model, copy)


def _cloned(model: keras.Model, copy: Callable[[keras.Layer], keras.Layer]) -> keras.Model:
    clone = keras.models.clone_model(model, clone_function=copy)
    clone.set_weights(model.get_weights())
    return clone
