"""A process that reads batches as a trainer does, and writes each batch's digest and step.

python -m tests.trainer.input_digests DATA_DIR OUT
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from preprocessing.index import load_index
from trainer.augmentation import Augmentation
from trainer.batching import BatchPlan, quantized
from trainer.input import chunks, train_batches
from trainer.records import FileRecords

STEPS = 120
KINDS = ({}, {"class_weighting": "sqrt"}, {"hard_share": 0.5})
EVERYTHING = Augmentation(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, erase=0.5)


def main(data_dir: str, out: str) -> None:
    """Continues after the last complete line of OUT."""
    index = load_index(data_dir, "train")
    records = FileRecords(index)
    path = Path(out)
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    path.write_text(whole + "\n" if whole else "")
    first = len(whole.splitlines())
    with path.open("a") as file:
        for start, count in chunks(first, STEPS, 20_000):
            iterators = []
            for kind in KINDS:
                plan = BatchPlan(index, classes_per_batch=4, images_per_class=4, seed=5, **kind)
                rng = np.random.default_rng(0)
                table = quantized(rng.normal(size=(plan.num_classes, 8)))
                data = train_batches(
                    index,
                    plan,
                    records,
                    first_step=start,
                    num_steps=count,
                    image_size=16,
                    augmentation=EVERYTHING,
                    centres=table if plan.hard_share else None,
                )
                iterators.append(data.as_numpy_iterator())
            for batches in zip(*iterators, strict=True):
                digest = hashlib.sha256()
                for images, labels, _ in batches:
                    digest.update(images.tobytes() + labels.tobytes())
                file.write(f"{digest.hexdigest()}\n")
                file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
