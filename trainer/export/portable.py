"""Copies a model with layers of Keras only, so that a saved model loads without this project."""

import keras

from trainer.models.batch_norm import BatchNormalization, Dropout
from trainer.models.keras_applications import PreprocessInput


def portable(model: keras.Model) -> keras.Model:
    """Copies a functional model, and replaces each layer of this project by one of Keras.

    Frozen batch norm becomes Keras's batch norm with `trainable` False, which keeps it in inference
    mode. Dropout gets a rate of 0. The scaling of the pixels becomes a layer that computes the same
    values.

    Args:
      model: a functional model of `build_model`; it is not changed.

    Returns:
      A model with equal outputs.
    """
    copies: list[tuple[keras.Layer, keras.Layer]] = []

    def copy(layer: keras.Layer) -> keras.Layer:
        copies.append((layer, _keras_layer(layer)))
        return copies[-1][1]

    copied = keras.models.clone_model(model, clone_function=copy, recursive=True)
    for layer, keras_layer in copies:
        if isinstance(layer, PreprocessInput) and keras_layer.weights:
            keras_layer.set_weights([layer.matrix[None, None], layer.offset])
        elif isinstance(layer, keras.Layer) and layer.weights:  # An operation has no weights.
            keras_layer.set_weights(layer.get_weights())
    return copied


def _keras_layer(layer: keras.Layer) -> keras.Layer:
    config = layer.get_config()
    if isinstance(layer, PreprocessInput):
        common = {"dtype": layer.dtype_policy, "name": layer.name}
        if layer.scaling is not None:
            return keras.layers.Rescaling(layer.scaling.scale, layer.scaling.offset, **common)
        # Converts RGB to BGR. Whole numbers up to 255 stay exact in every float type.
        return keras.layers.Conv2D(3, 1, trainable=False, **common)
    if isinstance(layer, BatchNormalization):
        return keras.layers.BatchNormalization.from_config({**config, "trainable": False})
    if isinstance(layer, Dropout):
        return keras.layers.Dropout.from_config({**config, "rate": 0.0})
    return type(layer).from_config(config)
