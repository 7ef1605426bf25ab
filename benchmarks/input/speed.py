"""A child process for one data set: `train_batches` and bare reads, in turns.

A bare read takes the records in file order. It decodes as many images as `train_batches`, with crop
windows of the same augmentation. Its windows are drawn before the clock starts, whereas the time of
`train_batches` includes planning and drawing.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.input.child import BATCH, K, P, consume
from benchmarks.input.data import SPLIT
from benchmarks.processes import answer
from benchmarks.timing import turns
from trainer.data.augmentation import Augmentation
from trainer.data.batch_plan import BatchPlan
from trainer.data.image_ops import pixels
from trainer.data.input_pipeline import GROUP, train_batches
from trainer.data.reading import FileRecords, MemoryRecords, Records
from tripletmill.formats.index import DatasetIndex, load_index

AUGMENTATION = Augmentation(min_area=0.3, flip=True)
FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}
FILES, MEMORY, PLAIN, GROUPS = "files", "memory", "bare", "bare, groups"

Build = Callable[[], tf.data.Dataset]


def ours(index: DatasetIndex, records: Records, num_steps: int, image_size: int) -> Build:
    """Returns a function that builds the batches as training reads them."""
    plan = BatchPlan(index, classes_per_batch=P, images_per_class=K)
    return lambda: train_batches(
        index,
        plan,
        records,
        first_step=0,
        num_steps=num_steps,
        image_size=image_size,
        augmentation=AUGMENTATION,
    )


class Bare:
    """Bare reads of N records in file order; with fewer records, reading starts again."""

    def __init__(self, index: DatasetIndex, count: int, image_size: int) -> None:
        rows = np.arange(count) % len(index)
        size = index.height[rows], index.width[rows]
        drawn = AUGMENTATION.draw(0, 0, np.arange(count), *size, image_size)
        self._window, self._flip = drawn["window"], drawn["flip"]
        self._shards = list(index.shards)
        self._count = count
        self._size = image_size

    def _records(self) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(self._shards).repeat().take(self._count)

    def plain(self) -> tf.data.Dataset:
        """Decodes one image at a time, the usual way."""

        def load(record: tf.Tensor, window: tf.Tensor, flip: tf.Tensor) -> tuple:
            example = tf.io.parse_single_example(record, FEATURES)
            image = tf.image.decode_and_crop_jpeg(example["image/encoded"], window, channels=3)
            image = tf.cond(flip, lambda: tf.image.flip_left_right(image), lambda: image)
            image = tf.image.resize(image, [self._size, self._size])
            return tf.cast(tf.round(image), tf.uint8), example["image/class/label"]

        return (
            tf.data.Dataset.zip(
                (
                    self._records(),
                    tf.data.Dataset.from_tensor_slices(self._window),
                    tf.data.Dataset.from_tensor_slices(self._flip),
                )
            )
            .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(BATCH, drop_remainder=True)
            .prefetch(2)
        )

    def groups(self) -> tf.data.Dataset:
        """Decodes groups of images, as `train_batches` does."""

        def load(records: tf.Tensor, window: tf.Tensor, flip: tf.Tensor) -> tuple:
            examples = tf.io.parse_example(records, FEATURES)
            drawn = {"window": window, "flip": flip}
            images = pixels(examples["image/encoded"], drawn, self._size)
            return images, examples["image/class/label"]

        def flatten(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.reshape(images, [BATCH, *images.shape[2:]]), tf.reshape(labels, [BATCH])

        def grouped(values: np.ndarray) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensor_slices(values.reshape(-1, GROUP, *values.shape[1:]))

        records = self._records().batch(GROUP, drop_remainder=True)
        return (
            tf.data.Dataset.zip((records, grouped(self._window), grouped(self._flip)))
            .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(BATCH // GROUP, drop_remainder=True)
            .map(flatten)
            .prefetch(2)
        )


def compare(request: dict) -> dict[str, list[dict[str, float]]]:
    """Returns what `consume` returns in each turn of each contestant."""
    index = load_index(request["data"], SPLIT)
    steps, side = request["read"] // BATCH, request["side"]
    bare = Bare(index, steps * BATCH, side)
    contestants = {FILES: ours(index, FileRecords(index), steps, side)}
    if request["memory"]:
        contestants[MEMORY] = ours(index, MemoryRecords(index), steps, side)
    contestants |= {PLAIN: bare.plain, GROUPS: bare.groups}

    def turn(build: Build) -> Callable[[], dict[str, float]]:
        return lambda: consume(build)

    return turns(
        {name: turn(build) for name, build in contestants.items()}, rounds=request["rounds"]
    )


if __name__ == "__main__":
    answer(compare)
