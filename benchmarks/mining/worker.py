"""The worker's side of the processes: holds contestants and runs one turn per request.

Each request and each reply is one line of JSON. This module needs only numpy, because the peers'
environments load it too.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.memory import peak_bytes
from benchmarks.processes import reply_stream

WIDTH, CLASS_SIZE = 128, 4
TURN_SECONDS = 0.2
LONG_CALL_SECONDS = 0.5

# Runs one forward and backward pass and returns the loss when everything is computed.
Step = Callable[[], float]
# Makes a step from labels [B] int32 and embeddings [B, D] float32.
Contestant = Callable[[np.ndarray, np.ndarray], Step]


def random_batch(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes shuffled labels [rows] int32 and unit-length embeddings [rows, WIDTH] float32.

    Each class has CLASS_SIZE rows.
    """
    random = np.random.RandomState(0)  # draws the same numbers in every version of numpy
    labels = random.permutation(rows) // CLASS_SIZE
    embeddings = random.standard_normal((rows, WIDTH)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return labels.astype(np.int32), embeddings


def turn(step: Step) -> tuple[list[float], float]:
    """Runs one turn; returns the seconds of each call, and the loss.

    A turn takes TURN_SECONDS or more. A first call longer than LONG_CALL_SECONDS is the only one.
    """
    seconds: list[float] = []
    end = time.perf_counter() + TURN_SECONDS
    while len(seconds) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
        if seconds[0] > LONG_CALL_SECONDS:
            return seconds, loss
    # The first call is dropped: it finds the caches as another process left them.
    return seconds[1:], loss


def memory(contestant: Contestant, rows: int, calls: int) -> dict:
    """Returns the peak of memory above the inputs, in bytes, and the fastest call's seconds."""
    contestant(*random_batch(256))()  # memory of the library's set-up does not count
    step = contestant(*random_batch(rows))
    seconds: list[float] = []

    def run() -> None:
        for _ in range(calls):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)

    return {"bytes": peak_bytes(run), "seconds": min(seconds)}


def serve(contestants: Mapping[str, Contestant], versions: Mapping[str, str]) -> None:
    """Prints the packages' versions, then answers requests until standard input ends."""
    replies = reply_stream()
    print(json.dumps(dict(versions)), file=replies)
    steps: dict[str, Step] = {}
    rows = 0
    for line in sys.stdin:
        request = json.loads(line)
        contestant = contestants[request["name"]]
        try:
            if "calls" in request:
                reply = memory(contestant, request["rows"], request["calls"])
            else:
                if rows != request["rows"]:
                    rows = request["rows"]
                    steps.clear()
                    batch = random_batch(rows)
                if request["name"] not in steps:
                    steps[request["name"]] = contestant(*batch)
                seconds, loss = turn(steps[request["name"]])
                reply = {"seconds": seconds, "loss": loss}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply), file=replies)
