"""Reads a data set to its end and times it, in a child process.

This module needs only the standard library, because the peers' environment loads it too.
"""

import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

# A batch has P classes with K images each.
P, K = 32, 4
BATCH = P * K


def consume(build: Callable[[], Any]) -> dict[str, float]:
    """Builds a data set of batches (images, labels, ...) and reads it to its end.

    Returns:
      "images": how many were read.
      "seconds", "cpu": elapsed time and CPU seconds, from the call of `build` to the end.
      "first", "first_cpu": elapsed time and CPU seconds up to the first batch.
      "exact": the share of batches with exactly P classes and K images of each.
    """
    start, cpu = time.perf_counter(), cpu_seconds()
    images = batches = exact = 0
    first = first_cpu = 0.0
    for batch in build():
        if not batches:
            first, first_cpu = time.perf_counter() - start, cpu_seconds() - cpu
        images += batch[0].shape[0]
        batches += 1
        exact += [*Counter(batch[1].numpy().tolist()).values()] == [K] * P
    return {
        "images": images,
        "seconds": time.perf_counter() - start,
        "cpu": cpu_seconds() - cpu,
        "first": first,
        "first_cpu": first_cpu,
        "exact": exact / batches,
    }


def cpu_seconds() -> float:
    """Returns the CPU seconds of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
