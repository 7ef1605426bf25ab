"""Measures the memory of processes.

This module needs only the standard library, because the peers' environments load it too.
"""

import os
import resource
import sys
import threading
from collections.abc import Callable


class PeakWatcher:
    """Samples a number in a thread while a `with` block runs.

    Attributes:
      peak: the highest value so far.
    """

    def __init__(self, sample: Callable[[], int], *, interval: float, start: int = 0) -> None:
        """Args: the function that returns the number, seconds between samples, the first peak."""
        self.peak = start
        self._sample = sample
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakWatcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self.peak = max(self.peak, self._sample())


def resident_bytes() -> int:
    """Returns the memory of this process that is in RAM (Linux only)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(run: Callable[[], object]) -> int:
    """Runs a function and returns by how many bytes resident memory rose at most (Linux only)."""
    before = resident_bytes()
    with PeakWatcher(resident_bytes, interval=0.001, start=before) as watcher:
        run()
    return watcher.peak - before


def peak_megabytes() -> float:
    """Returns the most memory that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
