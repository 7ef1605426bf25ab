"""A child process that measures batch plans alone, on labels without images."""

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.input.child import K, P
from benchmarks.input.ours import Labels
from benchmarks.memory import peak_bytes, resident_bytes
from benchmarks.processes import answer
from trainer.data.batch_plan import WEIGHTINGS, BatchPlan

# Classes in a batch, and images of each.
SHAPES = ((1024, 4), (32, 128), (128, 32))
HARD, HARD_SHARE, DIMENSIONS = "hard", 0.5, 128
MOST_STEPS = 300


def set_up(request: dict) -> dict[str, Any]:
    """Returns the seconds and megabytes that one plan takes to set up.

    The process must be new, because a used process keeps memory.
    """
    labels = _labels(request["classes"], request["images"])
    plans: list[BatchPlan] = []  # keeps the plan alive until its memory is measured
    seconds = 0.0

    def make() -> None:
        nonlocal seconds
        start = time.perf_counter()
        plans.append(
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
    """Returns the microseconds of `BatchPlan.batch` for each shape and kind of plan.

    Each entry holds the time of the first step, which starts a new pass, and the median of the
    later steps.
    """
    labels = _labels(request["classes"], request["images"])
    microseconds: dict[str, dict[str, Any]] = {}
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
        microseconds[f"{classes} x {images}"] = kinds
    return microseconds


def _labels(classes: int, images: int) -> Labels:
    return Labels(np.repeat(np.arange(classes, dtype=np.int32), images))


def _centres(classes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-127, 128, (classes, DIMENSIONS), np.int8)


def _microseconds(batch: Callable[[int], np.ndarray], seconds: float) -> list[float]:
    """Returns the time of the first step and the median of the later steps."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or (time.perf_counter() < end and len(taken) < MOST_STEPS):
        start = time.perf_counter()
        batch(len(taken))
        taken.append(1e6 * (time.perf_counter() - start))
    return [taken[0], statistics.median(taken[1:])]


def run(request: dict) -> dict[str, Any]:
    """Measures the set-up if the request names a weighting, and the steps otherwise."""
    return set_up(request) if "weighting" in request else steps(request)


if __name__ == "__main__":
    answer(run)
