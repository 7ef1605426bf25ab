"""A process that holds some contestants and lets each have its turn when it is told to.

One line of JSON a request and one a reply. Nothing here but numpy: it runs in the peers'
environments too.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

WIDTH, CLASS_SIZE = 128, 4
TURN_SECONDS = 0.2
LONG_CALL_SECONDS = 0.5

# One forward and backward pass: returns the loss once all is computed.
Step = Callable[[], float]
# Labels [B] int32 and embeddings [B, D] float32 -> a step.
Contestant = Callable[[np.ndarray, np.ndarray], Step]


def random_batch(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [rows] int32, K of a class and shuffled, and unit embeddings [rows, D] float32."""
    random = np.random.RandomState(0)  # its numbers are the same in every version of numpy
    labels = random.permutation(rows) // CLASS_SIZE
    embeddings = random.standard_normal((rows, WIDTH)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return labels.astype(np.int32), embeddings


def turn(step: Step) -> tuple[list[float], float]:
    """Seconds of each call and the loss."""
    seconds: list[float] = []
    end = time.perf_counter() + TURN_SECONDS
    while len(seconds) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
        if seconds[0] > LONG_CALL_SECONDS:
            return seconds, loss
    # The first finds the caches as another process left them.
    return seconds[1:], loss


def resident_bytes() -> int:
    """Memory of this process that is in RAM (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(run: Callable[[], object]) -> int:
    """How far resident memory rose above where it was, at most, while this ran."""
    before = peak = resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def memory(contestant: Contestant, rows: int, calls: int) -> dict:
    """Bytes above the inputs and seconds of the fastest call; in a fresh process."""
    contestant(*random_batch(256))()  # what a library sets up once is not the loss's
    step = contestant(*random_batch(rows))
    seconds: list[float] = []

    def run() -> None:
        for _ in range(calls):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)

    return {"bytes": peak_bytes(run), "seconds": min(seconds)}


def serve(contestants: Mapping[str, Contestant], versions: Mapping[str, str]) -> None:
    """Answers requests until standard input ends; the first line is the packages' versions."""
    # Libraries print what they like: only replies go where the driver reads.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
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
