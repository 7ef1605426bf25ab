"""Saves a model as a SavedModel that computes embeddings of image files or of pixels."""

from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef

from trainer.data.image_ops import ANTIALIAS_FROM, resize, to_uint8

ENCODED, PIXELS = "serving_default", "pixels"
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_BITS = 24  # Offset of the byte of a PNG that holds the number of bits of a sample.
_REFUSED = "not a JPEG or PNG image; convert it to JPEG first"


def save(
    model: keras.Model,
    folder: str,
    *,
    central_share: float,
    background: tuple[int, int, int],
) -> None:
    """Writes a SavedModel with two signatures, each for any number of images, including none.

    "serving_default" takes `encoded`, string [batch], each a JPEG or PNG file. The graph processes
    an image as an evaluation does; see `decode`. "pixels" takes `image`, uint8 [batch, S, S, 3],
    RGB. Both return `embedding`, float32 [batch, D].

    Args:
      model: images [batch, S, S, 3], 0 to 255 -> embeddings [batch, D].
      folder: folder that is written.
      central_share: side of the central square of an image that is used, as a share of its short
        side.
      background: RGB, each 0 to 255, on which transparent pixels of a PNG are shown.
    """
    size = int(model.input_shape[1])

    def square(data: tf.Tensor) -> tf.Tensor:
        return decode(data, size, central_share=central_share, background=background)

    @tf.function(
        input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8, name="image")],
        autograph=False,
    )
    def pixels(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": model(image, training=False)}

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="encoded")], autograph=False
    )
    def encoded(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        # TensorFlow decodes images on the CPU only.
        with tf.device("/device:CPU:0"):
            spec = tf.TensorSpec([size, size, 3], tf.uint8)
            images = tf.map_fn(square, encoded, fn_output_signature=spec)
        return {"embedding": model(images, training=False)}

    module = tf.Module()
    # Only the values: with the model itself, Keras's own signatures and this project's class names
    # would be saved too.
    module.weights = [variable.value for variable in model.variables]
    tf.saved_model.save(module, folder, signatures={ENCODED: encoded, PIXELS: pixels})
    _clear_uuid(Path(folder, "fingerprint.pb"))


@tf.autograph.experimental.do_not_convert
def decode(
    data: tf.Tensor, image_size: int, *, central_share: float, background: tuple[int, int, int]
) -> tf.Tensor:
    """Decodes the central square of an image file, as an evaluation does with a record.

    EXIF orientation is ignored. Transparent pixels of a PNG are shown on the background, and of 16
    bits the upper 8 are used. Any other format and damaged files raise an error of TensorFlow.

    Args:
      data: scalar string, a JPEG or PNG file.
      image_size: S, in pixels.
      central_share: side of the square, as a share of the image's short side.
      background: RGB, each 0 to 255.

    Returns:
      [S, S, 3] uint8, RGB.
    """

    def window(shape: tf.Tensor) -> tf.Tensor:
        """Computes in TensorFlow what `central_windows` computes in NumPy."""
        edges = tf.cast(shape[:2], tf.float64)
        side = tf.maximum(tf.round(tf.reduce_min(edges) * central_share), 1)
        corner = tf.floor((edges - side) / 2)
        return tf.cast(tf.concat([corner, [side, side]], axis=0), tf.int32)

    def jpeg() -> tf.Tensor:
        return tf.image.decode_and_crop_jpeg(
            data, window(tf.io.extract_jpeg_shape(data)), channels=3
        )

    def png() -> tf.Tensor:
        image = tf.io.decode_png(data, channels=4)
        # For an opaque PNG of 1, 2 or 4 bits TensorFlow sets opacity to 2^bits - 1, not to 255.
        bits = tf.cast(tf.io.decode_raw(tf.strings.substr(data, _PNG_BITS, 1), tf.uint8), tf.int32)
        filled = tf.cast(image[..., 3], tf.int32) == tf.bitwise.left_shift(1, bits) - 1
        opaque = tf.reduce_all(filled)
        top, left, height, width = tf.unstack(window(tf.shape(image)))
        image = tf.cast(image[top : top + height, left : left + width], tf.float32)
        opacity = tf.where(opaque, 1.0, image[..., 3:] / 255)
        return to_uint8(
            opacity * image[..., :3] + (1 - opacity) * tf.constant(background, tf.float32)
        )

    def refused() -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.Assert(False, [_REFUSED])]):
            return tf.zeros([1, 1, 3], tf.uint8)

    def starts(magic: bytes) -> tf.Tensor:
        return tf.equal(tf.strings.substr(data, 0, len(magic)), magic)

    square = tf.case([(starts(_JPEG), jpeg), (starts(_PNG), png)], default=refused)
    shape = tf.shape(square)[:2]
    shrinks = tf.cast(shape[0], tf.float32) > ANTIALIAS_FROM * image_size
    image = to_uint8(resize(square[None], image_size, shape=shape, shrinks=shrinks))[0]
    return tf.ensure_shape(image, [image_size, image_size, 3])


def _clear_uuid(path: Path) -> None:
    """Clears the random part of a SavedModel's fingerprint: equal models give equal bytes."""
    fingerprint = FingerprintDef.FromString(path.read_bytes())
    fingerprint.ClearField("uuid")
    path.write_bytes(fingerprint.SerializeToString(deterministic=True))
