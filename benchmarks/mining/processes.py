"""The driver's side of the workers: one process an environment, one of them at work at a time."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.mining.contestants import WORKERS

ROOT = Path(__file__).parents[2]
CORES = 2
SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": str(CORES),
    "OMP_NUM_THREADS": str(CORES),
    # PyTorch's threads would spin while others have their turn, and against whatever else runs.
    "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    "PYTHONWARNINGS": "ignore",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTEROP_THREADS": str(CORES),
    "TF_NUM_INTRAOP_THREADS": str(CORES),
}


class WorkerError(Exception):
    """A contestant failed or its process ended; the message says how."""


def keep_to_cores() -> None:
    """Keeps the process, and those it starts, on two cores, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def interpreter(environment: str, peers: Path) -> Path | None:
    """Python of an environment, None where it is not installed."""
    if environment == "ours":
        return Path(sys.executable)
    python = peers.absolute() / environment / "bin" / "python"
    return python if python.exists() else None


class Worker:
    """A process with some contestants; use it in a `with` statement.

    Attributes:
      versions: those of the packages in its environment.
    """

    def __init__(self, environment: str, python: Path) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), "-m", WORKERS[environment]],
            cwd=ROOT,
            env={**os.environ, **SETTINGS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self.versions: dict[str, str] = self._reply()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def turn(self, name: str, rows: int) -> tuple[list[float], float]:
        """Seconds of each call on a batch of so many rows, and the loss."""
        reply = self._ask({"name": name, "rows": rows})
        return reply["seconds"], reply["loss"]

    def memory(self, name: str, rows: int, *, calls: int) -> tuple[int, float]:
        """Bytes above the inputs, and seconds of the fastest call; of a process not yet used."""
        reply = self._ask({"name": name, "rows": rows, "calls": calls})
        return reply["bytes"], reply["seconds"]

    def _ask(self, request: dict) -> dict:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
        except BrokenPipeError:
            raise WorkerError("its process has ended") from None
        reply = self._reply()
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def _reply(self) -> dict:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise WorkerError(f"process ended with {status}: {self._log.read()[-2000:]}")
        return json.loads(line)
