"""Batches by record offset against a bare sequential read with the same decode.

python -m benchmarks.input
"""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from benchmarks.timing import print_table, rates
from pipeline.preprocess import preprocess
from preprocessing.index import DatasetIndex, load_index
from preprocessing.splits import SortedSplits
from trainer.batching import BatchPlan
from trainer.input import Augmentation, train_batches

CLASSES, IMAGES, SIDE = 200, 20, 128
WHOLE = Augmentation(min_area=1.0, max_aspect=1.0, flip=False)


def data_set(folder: Path) -> DatasetIndex:
    rng = np.random.default_rng(0)
    for c in range(CLASSES):
        (folder / f"images/{c:04d}").mkdir(parents=True)
        for i in range(IMAGES):
            coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            image = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.save(folder / f"images/{c:04d}/{i}.jpg")
    preprocess(
        input=str(folder / "images"),
        output=str(folder / "data"),
        short_side=SIDE,
        splits=SortedSplits(["train"]),
        runner=FnApiRunner(),
        options=PipelineOptions([]),
    )
    return load_index(str(folder / "data"), "train")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = data_set(Path(folder))
        plan = BatchPlan(index.label, classes_per_batch=32, images_per_class=4)
        steps = len(index) // plan.batch_size

        def by_offset() -> int:
            batches = train_batches(
                index,
                plan,
                first_step=0,
                num_steps=steps,
                image_size=SIDE,
                augmentation=WHOLE,
                replicas=1,
            )
            return sum(len(images) for images, _ in batches)

        def sequential() -> int:
            features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}

            def decode(record: tf.Tensor) -> tf.Tensor:
                jpeg = tf.io.parse_single_example(record, features)["image/encoded"]
                return tf.ensure_shape(tf.image.decode_jpeg(jpeg, channels=3), [SIDE, SIDE, 3])

            records = tf.data.TFRecordDataset(list(index.shards))
            batches = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(128)
            return sum(len(images) for images in batches.prefetch(2))

        found = rates({"P x K batches by offset": by_offset, "sequential": sequential}, rounds=5)
        print_table(f"{CLASSES} classes, {SIDE} px JPEGs", found, unit="images")


if __name__ == "__main__":
    main()
