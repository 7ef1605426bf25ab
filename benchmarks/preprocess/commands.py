"""Commands in processes of their own: how long they take, and the memory of all their processes."""

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
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
SETTINGS = {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}
SAMPLE_SECONDS = 0.05
GONE_SECONDS = 5.0


class CommandError(Exception):
    """A command failed; the message says how."""


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
      seconds: from its start to its end.
      peak: bytes of memory of all its processes at most; None where it cannot be seen.
    """

    seconds: float
    peak: int | None


@contextlib.contextmanager
def started(log: IO[str], module: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """`python -m module`, which is gone when the block ends, with every process that it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **SETTINGS},
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
    """Kills the process and those it started, and waits until they are gone."""
    end = time.monotonic() + GONE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while time.monotonic() < end:
            os.killpg(process.pid, 0)  # until there is no such group
            time.sleep(0.01)


def run(module: str, *arguments: str) -> Done:
    """Runs `python -m module` to its end; raises CommandError where it fails."""
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        with started(log, module, *arguments) as process:
            peak = _peak_until_end(process)
            seconds = time.perf_counter() - start
            status = process.wait()
        if status:
            raise CommandError(f"{module}: status {status}: {tail(log)}")
        return Done(seconds, peak)


def tail(log: IO[str]) -> str:
    """The end of what a command printed."""
    log.seek(0)
    return log.read()[-2000:].strip()


def _peak_until_end(process: subprocess.Popen) -> int | None:
    """Waits for the process to end; the highest sum of the peaks of those of its tree alive.

    Each process's peak is the kernel's own, so that none is missed between two looks.
    """
    if not os.path.exists(f"/proc/self/task/{threading.get_native_id()}/children"):
        process.wait()
        return None
    ended = threading.Event()
    peak = 0

    def look() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_SECONDS):
            peak = max(peak, sum(_peak(pid) for pid in _tree(process.pid)))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        process.wait()
    finally:
        ended.set()
        watcher.join()
    return peak


def _tree(pid: int) -> Iterator[int]:
    """The process, its children and theirs."""
    yield pid
    with contextlib.suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                children = file.read().split()
            for child in children:
                yield from _tree(int(child))


def _peak(pid: int) -> int:
    """Resident bytes of a process at most so far; 0 of one that has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
