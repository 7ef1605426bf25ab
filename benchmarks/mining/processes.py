"""Starts the workers: one process for each environment. Only one of them works at a time."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.mining.contestants import WORKERS
from benchmarks.processes import CORES, ROOT, TWO_CORES, CommandError, tail


def keep_to_cores() -> None:
    """Limits this process and its children to two cores, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


class Worker:
    """A process with contestants; use it in a `with` statement.

    Attributes:
      versions: the versions of the packages in its environment, by package name.

    Raises:
      CommandError: the process or a contestant failed.
    """

    def __init__(self, environment: str, python: Path) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), "-m", WORKERS[environment]],
            cwd=ROOT,
            env={**os.environ, **TWO_CORES},
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
        """Runs one turn on a batch of `rows` rows; returns each call's seconds, and the loss."""
        reply = self._ask({"name": name, "rows": rows})
        return reply["seconds"], reply["loss"]

    def memory(self, name: str, rows: int, *, calls: int) -> tuple[int, float]:
        """Returns the peak of memory above the inputs, in bytes, and the fastest call's seconds.

        The worker must be new, because a used process keeps memory.
        """
        reply = self._ask({"name": name, "rows": rows, "calls": calls})
        return reply["bytes"], reply["seconds"]

    def _ask(self, request: dict) -> dict:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
        except BrokenPipeError:
            raise CommandError("the process of this worker has ended") from None
        reply = self._reply()
        if "error" in reply:
            raise CommandError(reply["error"])
        return reply

    def _reply(self) -> dict:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise CommandError(f"exit status {status}: {tail(self._log)}")
        return json.loads(line)
