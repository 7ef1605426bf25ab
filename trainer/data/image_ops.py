"""Decodes, crops and resizes images in TensorFlow, and applies augmentations to them."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tripletmill.errors import UsageError

# Images that are shrunk by more than this factor are anti-aliased, which takes five times as long.
ANTIALIAS_FROM = 1.5


def central_windows(height: np.ndarray, width: np.ndarray, share: float) -> np.ndarray:
    """Windows of the central squares of images.

    Args:
      height: [...] heights in pixels.
      width: [...] widths in pixels.
      share: side of the square, as a share of the image's short side, above 0 to 1.

    Returns:
      [..., 4] int32: top, left, height, width.
    """
    side = np.maximum(np.rint(np.minimum(height, width) * share), 1)
    top, left = np.floor((height - side) / 2), np.floor((width - side) / 2)
    return np.stack([top, left, side, side], axis=-1).astype(np.int32)


def pixels(jpegs: tf.Tensor, drawn: Mapping[str, tf.Tensor], image_size: int) -> tf.Tensor:
    """Decodes windows of encoded images, resizes them, and applies their augmentations.

    Args:
      jpegs: [G] encoded images; G is known when the graph is built.
      drawn: arrays by name: "window" [G, 4]; "shrinks" [G], if any window is shrunk so much that it
        needs anti-aliasing; and the other arrays that `Augmentation.draw` returned for these
        images.
      image_size: S, side of the resulting images in pixels.

    Returns:
      [G, S, S, 3] uint8.
    """
    each = {
        name: tf.unstack(drawn[name]) for name in ("window", "flip", "shrinks") if name in drawn
    }
    images = [
        _crop(jpeg, image_size, **{name: values[i] for name, values in each.items()})
        for i, jpeg in enumerate(tf.unstack(jpegs))
    ]
    if "colour" in drawn or "affine" in drawn:
        # All images at once: the overhead of a small TensorFlow operation is as large as its work.
        batch = tf.concat(images, axis=0)
        if "affine" in drawn:
            batch = _warp(batch, drawn["affine"], image_size)
        if "colour" in drawn:
            batch = _recolour(batch, drawn["colour"])
        batch = to_uint8(batch)
    else:
        # Image by image: the floats of several images do not fit into a core's cache.
        batch = tf.concat([to_uint8(image) for image in images], axis=0)
    if "erased" in drawn:
        batch = _erase(batch, drawn["erased"])
    return tf.ensure_shape(batch, [len(images), image_size, image_size, 3])


def _crop(
    jpeg: tf.Tensor,
    image_size: int,
    *,
    window: tf.Tensor,
    flip: tf.Tensor | None = None,
    shrinks: tf.Tensor | None = None,
) -> tf.Tensor:
    """Decodes one window of an image and resizes it, [1, S, S, 3] float32."""
    crop = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3)
    if flip is not None:
        # Reversing along one axis or along none is cheaper than a condition.
        crop = tf.reverse(crop, tf.range(1, 1 + tf.cast(flip, tf.int32)))
    return resize(crop[None], image_size, shape=window[2:], shrinks=shrinks)


def resize(
    crops: tf.Tensor, image_size: int, *, shape: tf.Tensor, shrinks: tf.Tensor | None
) -> tf.Tensor:
    """Resizes crops to the image size of the model.

    Args:
      crops: [G, height, width, 3] uint8.
      image_size: S, side of the resulting images in pixels.
      shape: [2] int32, height and width of the crops.
      shrinks: scalar bool, whether to anti-alias, see the function `shrinks`; None means False.

    Returns:
      [G, S, S, 3] float32, 0 to 255.
    """
    size = tf.constant([image_size] * 2)

    def plain() -> tf.Tensor:
        return tf.raw_ops.ResizeBilinear(images=crops, size=size, half_pixel_centers=True)

    def antialiased() -> tf.Tensor:
        scale = tf.cast(size, tf.float32) / tf.cast(shape, tf.float32)
        zero = tf.zeros([2])
        return tf.raw_ops.ScaleAndTranslate(
            images=crops, size=size, scale=scale, translation=zero, kernel_type="triangle"
        )

    # tf.image.resize would add operations that find out what is known here.
    return plain() if shrinks is None else tf.cond(shrinks, antialiased, plain)


def _warp(images: tf.Tensor, affine: tf.Tensor, image_size: int) -> tf.Tensor:
    """Rotates and shears images [G, S, S, 3] float32; affine [G, 8]."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=affine,
        output_shape=[image_size] * 2,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _recolour(images: tf.Tensor, colour: tf.Tensor) -> tf.Tensor:
    """Applies a colour matrix to each image [G, S, S, 3] float32, 0 to 255; colour [G, 3, 4]."""
    flat = tf.reshape(images, [images.shape[0], -1, 3])
    flat = tf.matmul(flat, colour[:, :, :3], transpose_b=True) + colour[:, None, :, 3]
    return tf.clip_by_value(tf.reshape(flat, tf.shape(images)), 0.0, 255.0)


def to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Rounds floats from 0 to 255 to the nearest uint8."""
    return tf.cast(tf.round(values), tf.uint8)


def _erase(images: tf.Tensor, erased: tf.Tensor) -> tf.Tensor:
    """Fills a window of each image with a colour; erased [G, 7] holds both."""
    top, left, height, width = (edge[:, None] for edge in tf.unstack(erased[:, :4], axis=1))
    place = tf.range(tf.shape(images)[1])[None]
    rows = (place >= top) & (place < top + height)
    columns = (place >= left) & (place < left + width)
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    colour = tf.cast(erased[:, None, None, 4:], tf.uint8)
    return tf.where(inside, colour, images)


def check_central_share(value: float) -> None:
    """Raises UsageError unless the share is above 0 and at most 1."""
    if not 0 < value <= 1:
        raise UsageError(f"central_share {value}: above 0, at most 1")


def shrinks(windows: np.ndarray, image_size: int) -> np.ndarray:
    """Which windows are shrunk so much that they need anti-aliasing.

    Args:
      windows: [..., 4] top, left, height, width in pixels.
      image_size: side of the square that they are resized to, in pixels.

    Returns:
      [...] bool.
    """
    return np.asarray(windows[..., 2:].min(axis=-1) > ANTIALIAS_FROM * image_size)
