"""Decodes, crops and resizes images in TensorFlow, and applies the augmentations drawn for them."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tripletmill.errors import UsageError

# Shrinking by more than this needs anti-aliasing, which takes five times as long.
ANTIALIAS_FROM = 1.5


def central_windows(height: np.ndarray, width: np.ndarray, share: float) -> np.ndarray:
    """Windows of the central square, its side that share of the short side; [..., 4] int32."""
    side = np.maximum(np.rint(np.minimum(height, width) * share), 1)
    top, left = np.floor((height - side) / 2), np.floor((width - side) / 2)
    return np.stack([top, left, side, side], axis=-1).astype(np.int32)


def pixels(jpegs: tf.Tensor, drawn: Mapping[str, tf.Tensor], image_size: int) -> tf.Tensor:
    """Decodes only the windows of encoded images, and applies what was drawn for each.

    Args:
      jpegs: [G] encoded images; G is known when the graph is built.
      drawn: "window" [G, 4], "shrinks" [G] if any of the windows does so much that it needs
        anti-aliasing, and what else `Augmentation.draw` gave for these images.
      image_size: S.

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
        # Together: a small operation of TensorFlow's costs as much as its work.
        batch = tf.concat(images, axis=0)
        if "affine" in drawn:
            batch = _transform(batch, drawn["affine"], image_size)
        if "colour" in drawn:
            batch = _recolour(batch, drawn["colour"])
        batch = whole(batch)
    else:
        # One by one: floats of several images do not fit into a core's cache.
        batch = tf.concat([whole(image) for image in images], axis=0)
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
    """[1, S, S, 3] float32."""
    crop = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3)
    if flip is not None:
        # Along one axis or none: cheaper than a condition.
        crop = tf.reverse(crop, tf.range(1, 1 + tf.cast(flip, tf.int32)))
    return resize(crop[None], image_size, shape=window[2:], shrinks=shrinks)


def resize(
    crops: tf.Tensor, image_size: int, *, shape: tf.Tensor, shrinks: tf.Tensor | None
) -> tf.Tensor:
    """Brings crops to the size that the model takes.

    Args:
      crops: [G, height, width, 3] uint8.
      image_size: S.
      shape: [2] int32, their height and width.
      shrinks: scalar bool, see `shrinks`; None where it is False.

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

    # tf.image.resize would ask again for what is known here.
    return plain() if shrinks is None else tf.cond(shrinks, antialiased, plain)


def _transform(images: tf.Tensor, affine: tf.Tensor, image_size: int) -> tf.Tensor:
    """Turns and slants [G, S, S, 3] float32; affine [G, 8]."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=affine,
        output_shape=[image_size] * 2,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _recolour(images: tf.Tensor, colour: tf.Tensor) -> tf.Tensor:
    """RGB [G, S, S, 3] float32, 0 to 255, by a matrix for each; colour [G, 3, 4]."""
    flat = tf.reshape(images, [images.shape[0], -1, 3])
    flat = tf.matmul(flat, colour[:, :, :3], transpose_b=True) + colour[:, None, :, 3]
    return tf.clip_by_value(tf.reshape(flat, tf.shape(images)), 0.0, 255.0)


def whole(values: tf.Tensor) -> tf.Tensor:
    """0.0 to 255.0 to the nearest uint8."""
    return tf.cast(tf.round(values), tf.uint8)


def _erase(images: tf.Tensor, erased: tf.Tensor) -> tf.Tensor:
    """Fills a window of each image with its colour; erased [G, 7]."""
    top, left, height, width = (edge[:, None] for edge in tf.unstack(erased[:, :4], axis=1))
    place = tf.range(tf.shape(images)[1])[None]
    rows = (place >= top) & (place < top + height)
    columns = (place >= left) & (place < left + width)
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    colour = tf.cast(erased[:, None, None, 4:], tf.uint8)
    return tf.where(inside, colour, images)


def check_central_share(value: float) -> None:
    """Raises UsageError unless above 0 and at most 1."""
    if not 0 < value <= 1:
        raise UsageError(f"central_share {value}: above 0, at most 1")


def shrinks(windows: np.ndarray, image_size: int) -> np.ndarray:
    """Which windows [..., 4] shrink so much that they need anti-aliasing, [...] bool."""
    return np.asarray(windows[..., 2:].min(axis=-1) > ANTIALIAS_FROM * image_size)
