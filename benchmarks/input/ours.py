"""Process that reads batches of a data set once, from its index on; imports are timed apart."""

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks.input.child import BATCH, K, P, answer, consume, peak_megabytes


@dataclasses.dataclass(frozen=True)
class Labels:
    """All that a plan needs of an index."""

    label: np.ndarray


def read(request: dict) -> dict[str, float]:
    """Seconds of each step, and what `consume` counts.

    The request's "classes": the first so many only, all with as many images; "read": images;
    "planned": images of the chunk that these begin, None for one as long as in training.
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

    found = consume(build)
    started, tensorflow_imported, imported, loaded, planned, built = clock
    before = planned - imported
    return {
        **found,
        "import": tensorflow_imported - started,
        "import_ours": imported - tensorflow_imported,
        "load_index": loaded - imported,
        "plan": planned - loaded,
        "build": built - planned,
        "next": planned + found["first"] - built,
        "first": before + found["first"],
        "seconds": before + found["seconds"],
        "megabytes": peak_megabytes(),
    }


if __name__ == "__main__":
    answer(read)
