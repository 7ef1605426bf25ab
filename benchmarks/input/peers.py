"""A child process for one peer: batches with K images of each class, from TFRecord files.

This module imports only TensorFlow and the peer, because it runs in the peer's environment.
"""

import glob
import logging
import os
from collections.abc import Callable

import tensorflow as tf

from benchmarks.input.child import BATCH, K, P, consume
from benchmarks.memory import peak_megabytes
from benchmarks.processes import answer

FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    "image/height": tf.io.FixedLenFeature([], tf.int64),
    "image/width": tf.io.FixedLenFeature([], tf.int64),
}
MIN_AREA, MAX_ASPECT = 0.3, 4 / 3


def loader(size: int) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Returns a function from a record to its image and label.

    Crops and mirroring follow the rules of our augmentation, with random numbers from the graph.
    """

    def load(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, FEATURES)
        full = tf.cast([example["image/height"], example["image/width"]], tf.float32)
        numbers = tf.random.uniform([5])
        area = (MIN_AREA + (1 - MIN_AREA) * numbers[0]) * full[0] * full[1]
        aspect = MAX_ASPECT ** (2 * numbers[1] - 1)
        crop = tf.minimum(tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect]))), full)
        corner = tf.floor(numbers[2:4] * (full - crop + 1))
        window = tf.cast(tf.concat([corner, crop], 0), tf.int32)
        image = tf.image.decode_and_crop_jpeg(example["image/encoded"], window, channels=3)
        image = tf.cond(numbers[4] < 0.5, lambda: tf.image.flip_left_right(image), lambda: image)
        image = tf.cast(tf.round(tf.image.resize(image, [size, size])), tf.uint8)
        return image, example["image/class/label"]

    return load


def batches(records: tf.data.Dataset, size: int) -> tf.data.Dataset:
    """Decodes records and groups the images into batches."""
    images = records.map(loader(size), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return images.batch(BATCH, drop_remainder=True).prefetch(2)


def bare(request: dict) -> tf.data.Dataset:
    """Reads all shards in order."""
    shards = sorted(glob.glob(os.path.join(request["data"], request["shards"])))
    return batches(tf.data.TFRecordDataset(shards).repeat(), request["side"])


def class_files(request: dict) -> list[str]:
    """Returns the files that hold one class each."""
    return sorted(glob.glob(os.path.join(request["class_files"], "*.tfrecord")))


def choose(request: dict) -> tf.data.Dataset:
    """Uses `choose_from_datasets`: one data set per class, P random ones for each batch."""
    files = class_files(request)

    def classes(_: tf.Tensor) -> tf.Tensor:
        return tf.repeat(tf.random.shuffle(tf.range(len(files), dtype=tf.int64))[:P], K)

    sets = [tf.data.TFRecordDataset(file).repeat() for file in files]
    choice = tf.data.Dataset.range(2**62).map(classes).unbatch()
    return batches(tf.data.Dataset.choose_from_datasets(sets, choice), request["side"])


def interleave(request: dict) -> tf.data.Dataset:
    """Uses `interleave`: P files at a time in random order, K records of each in turn."""
    files = class_files(request)
    records = (
        tf.data.Dataset.from_tensor_slices(files)
        .shuffle(len(files))
        .repeat()
        .interleave(
            tf.data.TFRecordDataset,
            cycle_length=P,
            block_length=K,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    )
    return batches(records, request["side"])


def similarity(request: dict) -> tf.data.Dataset:
    """Uses TensorFlow Similarity's sampler: K records of a shard, then K of the next one."""
    # Importing it may log an error about TensorFlow Datasets, which is not needed here.
    logging.disable(logging.ERROR)
    from tensorflow_similarity.samplers import TFRecordDatasetSampler

    return TFRecordDatasetSampler(
        request["data"],
        deserialization_fn=loader(request["side"]),
        example_per_class=K,
        batch_size=BATCH,
        shard_suffix=request["shards"],
    )


CONTESTANTS: dict[str, Callable[[dict], tf.data.Dataset]] = {
    "bare": bare,
    "choose": choose,
    "interleave": interleave,
    "similarity": similarity,
}


def read(request: dict) -> dict[str, float | str]:
    """Reads batches once; returns what `consume` returns. The time to build the data set counts."""
    contestant = CONTESTANTS[request["name"]]
    if request["name"] == "similarity":
        import tensorflow_similarity  # noqa: F401  # the import is not timed
    counts = consume(lambda: contestant(request).take(request["read"] // BATCH))
    return {
        **counts,
        "megabytes": peak_megabytes(),
        "tensorflow": tf.__version__,
    }


if __name__ == "__main__":
    answer(read)
