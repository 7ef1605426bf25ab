"""Rows of the index to pixels: records read by offset, decoded, augmented, as a tf.data graph."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from preprocessing.errors import UsageError
from preprocessing.index import DatasetIndex
from trainer.batching import BatchPlan

ROWS_A_CHUNK = 500_000
# Shrinking by more than this needs anti-aliasing.
ANTIALIAS_FROM = 1.5


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a training crop is drawn.

    Attributes:
      min_area: smallest share of the image's area that a crop covers, above 0 to 1.
      max_area: largest share, min_area to 1.
      max_aspect: a crop's longer side over its shorter one is at most this, 1 or more.
      flip: whether half of the crops are mirrored left to right.
    """

    min_area: float = 0.5
    max_area: float = 1.0
    max_aspect: float = 4 / 3
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= self.max_area <= 1:
            raise UsageError(
                "Augmentation: 0 < min_area <= max_area <= 1, not"
                f" {self.min_area} and {self.max_area}"
            )
        if self.max_aspect < 1:
            raise UsageError(f"Augmentation.max_aspect: 1 or more, not {self.max_aspect}")


def train_batches(
    index: DatasetIndex,
    plan: BatchPlan,
    *,
    first_step: int,
    num_steps: int,
    image_size: int,
    augmentation: Augmentation,
    replicas: int,
) -> tf.data.Dataset:
    """Training batches of some steps, one element a replica and step, replicas first.

    Args:
      index: the split's records.
      plan: which rows each step sees.
      first_step: the first step.
      num_steps: how many steps; the data set ends with the last one.
      image_size: side of the square crops, pixels.
      augmentation: how crops are drawn; a function of (seed, step, place in the batch).
      replicas: how many replicas share a global batch; divides P x K.

    Returns:
      A data set of (images [P x K / replicas, S, S, 3] uint8, labels [P x K / replicas] int32).
    """
    steps = range(first_step, first_step + num_steps)
    rows = np.concatenate([plan.batch(step).ravel() for step in steps])
    places = first_step * plan.batch_size + np.arange(len(rows), dtype=np.int64)
    records = _records(index, rows)
    seeds = tf.data.Dataset.from_tensor_slices(places)

    def crop(jpeg: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([tf.constant(plan.seed, tf.int64), place])
        return _random_crop(jpeg, seed, image_size, augmentation)

    def load(record: tuple[tf.Tensor, ...], place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        path, offset, label = record
        return crop(_jpeg(path, offset), place), label

    return (
        tf.data.Dataset.zip((records, seeds))
        .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(plan.batch_size // replicas, drop_remainder=True)
        .prefetch(2 * replicas)
    )


def chunks(first_step: int, last_step: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Cuts steps into (first step, number of steps) small enough for one data set each."""
    size = max(1, ROWS_A_CHUNK // batch_size)
    for start in range(first_step, last_step, size):
        yield start, min(size, last_step - start)


def evaluation_batches(
    index: DatasetIndex,
    rows: np.ndarray,
    *,
    image_size: int,
    central_share: float,
    batch_size: int,
) -> tf.data.Dataset:
    """The images of these rows, in order; the last batch may be smaller.

    Args:
      index: the split's records.
      rows: [N] rows of the index.
      image_size: side of the square images, pixels.
      central_share: side of the central square that is kept, as a share of the short side.
      batch_size: images a batch.

    Returns:
      A data set of images [batch, S, S, 3] uint8.
    """

    def load(path: tf.Tensor, offset: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return _central_crop(_jpeg(path, offset), image_size, central_share)

    return (
        _records(index, rows)
        .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size)
        .prefetch(2)
    )


def _records(index: DatasetIndex, rows: np.ndarray) -> tf.data.Dataset:
    """(path, offset, label) of each row."""
    paths = tf.constant(list(index.shards))
    arrays = (index.shard[rows], index.offset[rows], index.label[rows])
    return tf.data.Dataset.from_tensor_slices(arrays).map(
        lambda shard, offset, label: (tf.gather(paths, shard), offset, label)
    )


def _jpeg(path: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Reads one record at its offset and gives the encoded image."""
    reader = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None],
        compression_type="",
        buffer_size=tf.constant(0, tf.int64),
        byte_offsets=offset[None],
    )
    spec = tf.TensorSpec([], tf.string)
    record = tf.data.experimental.from_variant(reader, spec).take(1).get_single_element()
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    return tf.io.parse_single_example(record, features)["image/encoded"]


def _random_crop(
    jpeg: tf.Tensor, seed: tf.Tensor, size: int, augmentation: Augmentation
) -> tf.Tensor:
    height, width = _shape(jpeg)
    draws = tf.random.stateless_uniform([5], seed)
    low, high = augmentation.min_area, augmentation.max_area
    area = (low + (high - low) * draws[0]) * height * width
    aspect = tf.exp(np.log(augmentation.max_aspect) * (2.0 * draws[1] - 1.0))
    crop_height = tf.clip_by_value(tf.sqrt(area / aspect), 1.0, height)
    crop_width = tf.clip_by_value(tf.sqrt(area * aspect), 1.0, width)
    top, left = draws[2] * (height - crop_height), draws[3] * (width - crop_width)
    image = _decode_crop(jpeg, top, left, crop_height, crop_width, size)
    if augmentation.flip:
        image = tf.cond(draws[4] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
    return image


def _central_crop(jpeg: tf.Tensor, size: int, share: float) -> tf.Tensor:
    height, width = _shape(jpeg)
    side = tf.minimum(height, width) * share
    return _decode_crop(jpeg, (height - side) / 2, (width - side) / 2, side, side, size)


def _shape(jpeg: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    shape = tf.cast(tf.io.extract_jpeg_shape(jpeg), tf.float32)
    return shape[0], shape[1]


def _decode_crop(
    jpeg: tf.Tensor,
    top: tf.Tensor,
    left: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    size: int,
) -> tf.Tensor:
    """Decodes only the window, and brings it to [size, size, 3] uint8."""
    window = tf.cast(tf.round(tf.stack([top, left, height, width])), tf.int32)
    image = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3)
    # Anti-aliasing takes five times as long, and shows only where much is shrunk.
    image = tf.cond(
        tf.minimum(height, width) > ANTIALIAS_FROM * size,
        lambda: tf.image.resize(image, [size, size], antialias=True),
        lambda: tf.image.resize(image, [size, size]),
    )
    return tf.ensure_shape(tf.cast(tf.round(image), tf.uint8), [size, size, 3])
