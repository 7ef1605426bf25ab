"""A child process that reads batches with train_batches, starting from the index on disk.

Imports are timed separately.
"""

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks.input.child import BATCH, K, P, consume
from benchmarks.memory import peak_megabytes
from benchmarks.processes import answer


@dataclasses.dataclass(frozen=True)
class Labels:
    """The only part of an index that a batch plan needs."""

    label: np.ndarray


def read(request: dict) -> dict[str, float]:
    """Reads batches once; returns the seconds of each stage and what `consume` returns.

    Args:
      request: "data" is the folder of the data set and "side" the image size in pixels. "classes"
        is how many classes are read, the first ones; all classes have equally many images. "read"
        is how many images are read. "planned" is how many images are planned ahead; None plans as
        many as in training.
    """
    clock = [time.perf_counter()]
    import tensorflow  # noqa: F401

    clock.append(time.perf_counter())
    from benchmarks.input.data import SPLIT
    from benchmarks.input.speed import AUGMENTATION
    from trainer.data.batch_plan import BatchPlan
    from trainer.data.input_pipeline import ROWS_A_CHUNK, train_batches
    from trainer.data.reading import FileRecords
    from tripletmill.formats.index import load_index

    clock.append(time.perf_counter())
    index = load_index(request["data"], SPLIT)
    clock.append(time.perf_counter())
    rows = len(index) // (int(index.label[-1]) + 1) * request["classes"]
    plan = BatchPlan(Labels(index.label[:rows]), classes_per_batch=P, images_per_class=K)
    clock.append(time.perf_counter())

    def build() -> Any:
        batches = train_batches(
            index,
            plan,
            FileRecords(index),
            first_step=0,
            num_steps=(request["planned"] or ROWS_A_CHUNK) // BATCH,
            image_size=request["side"],
            augmentation=AUGMENTATION,
        )
        clock.append(time.perf_counter())
        return batches.take(request["read"] // BATCH)

    counts = consume(build)
    started, tensorflow_imported, imported, loaded, planned, built = clock
    before_build = planned - imported
    return {
        **counts,
        "import": tensorflow_imported - started,
        "import_ours": imported - tensorflow_imported,
        "load_index": loaded - imported,
        "plan": planned - loaded,
        "build": built - planned,
        "next": planned + counts["first"] - built,
        "first": before_build + counts["first"],
        "seconds": before_build + counts["seconds"],
        "megabytes": peak_megabytes(),
    }


if __name__ == "__main__":
    answer(read)
