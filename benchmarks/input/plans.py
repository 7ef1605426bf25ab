"""Process for batch plans alone, on labels that no images belong to."""

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.input.child import K, P, answer
from benchmarks.input.ours import Labels
from benchmarks.mining.worker import peak_bytes, resident_bytes
from trainer.data.batch_plan import WEIGHTINGS, BatchPlan

SHAPES = ((1024, 4), (32, 128), (128, 32))
HARD, HARD_SHARE, DIMENSIONS = "hard", 0.5, 128
MOST_STEPS = 300


def set_up(request: dict) -> dict[str, Any]:
    """Seconds and megabytes of one plan, which nothing came before in this process."""
    labels = _labels(request["classes"], request["images"])
    made: list[BatchPlan] = []
    seconds = 0.0

    def make() -> None:
        nonlocal seconds
        start = time.perf_counter()
        made.append(
            BatchPlan(
                labels,
                classes_per_batch=P,
                images_per_class=K,
                class_weighting=request["weighting"],
            )
        )
        seconds = time.perf_counter() - start

    if not os.path.exists("/proc/self/statm"):
        make()
        return {"seconds": seconds, "peak": None, "kept": None}
    before = resident_bytes()
    peak = peak_bytes(make)
    return {
        "seconds": seconds,
        "peak": peak / 1e6,
        "kept": (resident_bytes() - before) / 1e6,
    }


def steps(request: dict) -> dict[str, dict[str, Any]]:
    """Microseconds of `batch` by shape and kind, medians, and of the first one, of a new pass."""
    labels = _labels(request["classes"], request["images"])
    found: dict[str, dict[str, Any]] = {}
    for classes, images in SHAPES:
        kinds: dict[str, Any] = {}
        if classes <= request["classes"]:
            for weighting in WEIGHTINGS:
                plan = BatchPlan(
                    labels,
                    classes_per_batch=classes,
                    images_per_class=images,
                    class_weighting=weighting,
                )
                kinds[weighting] = _microseconds(plan.batch, request["seconds"])
            hard = BatchPlan(
                labels, classes_per_batch=classes, images_per_class=images, hard_share=HARD_SHARE
            )
            batch = functools.partial(hard.batch, centres=_centres(hard.num_classes))
            kinds[HARD] = _microseconds(batch, request["seconds"])
        found[f"{classes} x {images}"] = kinds
    return found


def _labels(classes: int, images: int) -> Labels:
    return Labels(np.repeat(np.arange(classes, dtype=np.int32), images))


def _centres(classes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-127, 128, (classes, DIMENSIONS), np.int8)


def _microseconds(batch: Callable[[int], np.ndarray], seconds: float) -> list[float]:
    """Of the first step, and of those after it."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or (time.perf_counter() < end and len(taken) < MOST_STEPS):
        start = time.perf_counter()
        batch(len(taken))
        taken.append(1e6 * (time.perf_counter() - start))
    return [taken[0], statistics.median(taken[1:])]


def run(request: dict) -> dict[str, Any]:
    """One or the other."""
    return set_up(request) if "weighting" in request else steps(request)


if __name__ == "__main__":
    answer(run)
