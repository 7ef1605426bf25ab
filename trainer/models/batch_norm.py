"""Batch norm of a network: kept in inference mode with its dropout, or live on all replicas.

Calling a network with `training=False` inside another does not do it: Keras 3 hands an outer
`training=True` on to every layer of a functional model, over whatever the graph says.
"""

from typing import Any

import keras

# The subclasses keep Keras's class names because a weights file names a layer by its class: files
# fit with and without freezing. They are registered under this project's package.


@keras.saving.register_keras_serializable(package="tripletmill")
class BatchNormalization(keras.layers.BatchNormalization):
    """Normalises by the moving statistics and never moves them; gamma and beta train."""

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
    """Copies a functional model, its batch norm and dropout now always in inference mode.

    Args:
      model: a functional model; it is left as it is.

    Returns:
      The same network with the same weights; `training=True` changes none of its outputs.
    """

    def copy(layer: keras.Layer) -> keras.Layer:
        return _FROZEN.get(type(layer), type(layer)).from_config(layer.get_config())

    frozen = keras.models.clone_model(model, clone_function=copy)
    frozen.set_weights(model.get_weights())
    return frozen


def synchronize_batch_norm(model: keras.Model) -> keras.Model:
    """Copies a functional model, its batch norm now over the batches of all replicas together.

    Without it every replica normalises by its own rows and keeps statistics of its own, of which
    only the first one's are saved.

    Args:
      model: a functional model; it is left as it is.

    Returns:
      The same network with the same weights.
    """

    def copy(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config["synchronized"] = True
        return type(layer).from_config(config)

    live = keras.models.clone_model(model, clone_function=copy)
    live.set_weights(model.get_weights())
    return live
