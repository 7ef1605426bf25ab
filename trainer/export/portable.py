"""The same model of Keras's own layers alone: what it is saved as loads without this project."""

import keras

from trainer.models.batch_norm import BatchNormalization, Dropout
from trainer.models.keras_applications import PreprocessInput


def portable(model: keras.Model) -> keras.Model:
    """Copies a functional model, each layer of this project's replaced by one of Keras's.

    Frozen batch norm becomes Keras's with `trainable` False, which keeps it in inference mode;
    dropout that drops nothing has a rate of 0; the scaling of the pixels becomes a layer that does
    the same.

    Args:
      model: a functional model of `build_model`; it is left as it is.

    Returns:
      A model with the same outputs.
    """
    copies: list[tuple[keras.Layer, keras.Layer]] = []

    def copy(layer: keras.Layer) -> keras.Layer:
        copies.append((layer, _of_keras(layer)))
        return copies[-1][1]

    made = keras.models.clone_model(model, clone_function=copy, recursive=True)
    for layer, of_keras in copies:
        if isinstance(layer, PreprocessInput) and of_keras.weights:
            of_keras.set_weights([layer.matrix[None, None], layer.offset])
        elif isinstance(layer, keras.Layer) and layer.weights:  # operations have none
            of_keras.set_weights(layer.get_weights())
    return made


def _of_keras(layer: keras.Layer) -> keras.Layer:
    config = layer.get_config()
    if isinstance(layer, PreprocessInput):
        common = {"dtype": layer.dtype_policy, "name": layer.name}
        if layer.scaling is not None:
            return keras.layers.Rescaling(layer.scaling.scale, layer.scaling.offset, **common)
        # From RGB to BGR. Whole numbers up to 255 come out exactly, whatever it is computed in.
        return keras.layers.Conv2D(3, 1, trainable=False, **common)
    if isinstance(layer, BatchNormalization):
        return keras.layers.BatchNormalization.from_config({**config, "trainable": False})
    if isinstance(layer, Dropout):
        return keras.layers.Dropout.from_config({**config, "rate": 0.0})
    return type(layer).from_config(config)
