"""Process for one peer: batches of a class each so many images, from TFRecord files.

Imports nothing but TensorFlow and what the peer is: it runs in the peer's environment.
"""

import glob
import logging
import os
from collections.abc import Callable

import tensorflow as tf

from benchmarks.input.child import BATCH, K, P, answer, consume, peak_megabytes

FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    "image/height": tf.io.FixedLenFeature([], tf.int64),
    "image/width": tf.io.FixedLenFeature([], tf.int64),
}
MIN_AREA, MAX_ASPECT = 0.3, 4 / 3


def loader(size: int) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Record -> image and label, with crops as ours are, drawn in the graph."""

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
    """Records to batches."""
    images = records.map(loader(size), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return images.batch(BATCH, drop_remainder=True).prefetch(2)


def bare(request: dict) -> tf.data.Dataset:
    """All shards in order."""
    shards = sorted(glob.glob(os.path.join(request["data"], request["shards"])))
    return batches(tf.data.TFRecordDataset(shards).repeat(), request["side"])


def class_files(request: dict) -> list[str]:
    return sorted(glob.glob(os.path.join(request["class_files"], "*.tfrecord")))


def choose(request: dict) -> tf.data.Dataset:
    """`choose_from_datasets`: a data set for each class, P of them at random for each batch."""
    files = class_files(request)

    def classes(_: tf.Tensor) -> tf.Tensor:
        return tf.repeat(tf.random.shuffle(tf.range(len(files), dtype=tf.int64))[:P], K)

    sets = [tf.data.TFRecordDataset(file).repeat() for file in files]
    choice = tf.data.Dataset.range(2**62).map(classes).unbatch()
    return batches(tf.data.Dataset.choose_from_datasets(sets, choice), request["side"])


def interleave(request: dict) -> tf.data.Dataset:
    """`interleave`: P files at a time in random order, K records of each in turn."""
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
    """TensorFlow Similarity's sampler on the same shards: K of a shard, then of the next."""
    # Its data sets of TensorFlow Datasets, which nothing here needs, may not import.
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
    """What `consume` counts, from the making of the data set on."""
    contestant = CONTESTANTS[request["name"]]
    if request["name"] == "similarity":
        import tensorflow_similarity  # noqa: F401  # not part of the time
    found = consume(lambda: contestant(request).take(request["read"] // BATCH))
    return {
        **found,
        "megabytes": peak_megabytes(),
        "tensorflow": tf.__version__,
    }


if __name__ == "__main__":
    answer(read)
