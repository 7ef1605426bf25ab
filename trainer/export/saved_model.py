"""A model as TensorFlow alone runs it: a SavedModel from image files, or pixels, to embeddings."""

import os

import keras
import tensorflow as tf
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef

from trainer.data.image_ops import ANTIALIAS_FROM, resize, to_uint8

ENCODED, PIXELS = "serving_default", "pixels"
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_BITS = 24  # where a PNG says how many bits a sample has
_REFUSED = "not a JPEG or PNG image; make a JPEG of it first"


def save(
    model: keras.Model,
    folder: str,
    *,
    central_share: float,
    background: tuple[int, int, int],
) -> None:
    """Writes a SavedModel with two signatures, for any number of images, 0 too.

    "serving_default": encoded, string [batch], each a JPEG or PNG file -> embedding, float32
    [batch, D]. What evaluation does with an image of a data set is done in the graph; see `decode`.
    "pixels": image, uint8 [batch, S, S, 3] RGB -> the same.

    Args:
      model: images [batch, S, S, 3] 0 to 255 -> [batch, D].
      folder: where it is written.
      central_share: side of the central square that is kept, as a share of the short side.
      background: RGB, each 0 to 255, that transparent pixels of a PNG are laid over.
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
        # There are no decoders for other devices.
        with tf.device("/device:CPU:0"):
            spec = tf.TensorSpec([size, size, 3], tf.uint8)
            images = tf.map_fn(square, encoded, fn_output_signature=spec)
        return {"embedding": model(images, training=False)}

    module = tf.Module()
    # The values alone: with the model would go Keras's own signatures, and this project's names.
    module.weights = [variable.value for variable in model.variables]
    tf.saved_model.save(module, folder, signatures={ENCODED: encoded, PIXELS: pixels})
    _without_chance(os.path.join(folder, "fingerprint.pb"))


@tf.autograph.experimental.do_not_convert
def decode(
    data: tf.Tensor, image_size: int, *, central_share: float, background: tuple[int, int, int]
) -> tf.Tensor:
    """The central square of an image file, as evaluation sees a record of a data set.

    JPEG as TensorFlow decodes it: EXIF orientation is not looked at. PNG: transparency is laid over
    the background, 16 bits become the upper 8. Anything else fails, and damaged files do.

    Args:
      data: scalar string, a JPEG or PNG file.
      image_size: S.
      central_share: side of the square, as a share of the short side.
      background: RGB, each 0 to 255.

    Returns:
      [S, S, 3] uint8, RGB.
    """

    def window(shape: tf.Tensor) -> tf.Tensor:
        """As `central_windows` has it, which is of numpy."""
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
        # Without transparency TensorFlow fills in 2^bits - 1, not 255, for 1, 2 and 4 bits.
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


def _without_chance(path: str) -> None:
    """Leaves out of a SavedModel's fingerprint the one number that is drawn anew each time."""
    with open(path, "rb") as file:
        fingerprint = FingerprintDef.FromString(file.read())
    fingerprint.ClearField("uuid")
    with open(path, "wb") as file:
        file.write(fingerprint.SerializeToString(deterministic=True))
