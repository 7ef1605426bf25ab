"""What processes of their own do: answer one request, count what a data set gives.

Nothing here but the standard library: it runs in the peers' environment too.
"""

import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

P, K = 32, 4
BATCH = P * K


def answer(function: Callable[[dict], Any]) -> None:
    """Prints as JSON what a function makes of the request on the command line."""
    # Libraries print what they like: only the reply goes where the driver reads.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    replies.write(json.dumps(function(json.loads(sys.argv[1]))))
    replies.flush()


def consume(build: Callable[[], Any]) -> dict[str, float]:
    """Makes a data set of (images, labels, ...) and reads it to its end.

    Returns:
      "images"; "seconds" and "cpu" seconds of all of it, "first" and "first_cpu" those until the
      first batch; "exact", the share of batches of P classes with K images each.
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
    """Of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_megabytes() -> float:
    """The most that this process has had in memory so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
