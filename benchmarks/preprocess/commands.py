"""Runs commands as child processes and measures their time and the memory of all processes."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO

from benchmarks.memory import PeakWatcher
from benchmarks.processes import QUIET_CPU, ROOT, CommandError, tail

SAMPLE_SECONDS = 0.05
KILL_TIMEOUT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a finished command needed.

    Attributes:
      seconds: the time from start to end.
      peak: the most memory of all processes together, in bytes; None where the system does not
        tell.
    """

    seconds: float
    peak: int | None


@contextlib.contextmanager
def started(log: IO[str], module: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """Starts `python -m module`; kills it and its child processes when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **QUIET_CPU},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill_group(process)


def _kill_group(process: subprocess.Popen) -> None:
    """Kills the process and its children, and waits until they are gone."""
    end = time.monotonic() + KILL_TIMEOUT_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while time.monotonic() < end:
            os.killpg(process.pid, 0)  # raises once the group is gone
            time.sleep(0.01)


def run(module: str, *arguments: str) -> Finished:
    """Runs `python -m module` to its end.

    Raises:
      CommandError: the command failed.
    """
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        with started(log, module, *arguments) as process:
            peak = _peak_until_end(process)
            seconds = time.perf_counter() - start
            status = process.wait()
        if status:
            raise CommandError(f"{module}: exit status {status}: {tail(log)}")
        return Finished(seconds, peak)


def _peak_until_end(process: subprocess.Popen) -> int | None:
    """Waits for the process to end; returns the most memory of the process and its descendants.

    Each sample adds up the peaks of all live processes. The kernel keeps the peak of each process,
    so no peak is missed between two samples.
    """
    if not os.path.exists(f"/proc/self/task/{threading.get_native_id()}/children"):
        process.wait()
        return None

    def sample() -> int:
        return sum(_peak(pid) for pid in _tree(process.pid))

    with PeakWatcher(sample, interval=SAMPLE_SECONDS) as watcher:
        process.wait()
    return watcher.peak


def _tree(pid: int) -> Iterator[int]:
    """Yields the ids of the process and of all its descendants."""
    yield pid
    with contextlib.suppress(OSError):  # the process may have ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                children = file.read().split()
            for child in children:
                yield from _tree(int(child))


def _peak(pid: int) -> int:
    """Returns the peak of a process's resident memory in bytes; 0 if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
