"""Starts the child processes of the benchmarks and exchanges requests and replies with them.

This module needs only the standard library, because the peers' environments load it too.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
CORES = 2
# Environment variables of every child process: no GPU, and little output.
QUIET_CPU = {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}
# Those of a child process that computes with as many threads as the other libraries get.
TWO_CORES = {
    **QUIET_CPU,
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": str(CORES),
    "OMP_NUM_THREADS": str(CORES),
    # Otherwise PyTorch's idle threads keep spinning and slow down whoever has its turn.
    "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    "TF_NUM_INTEROP_THREADS": str(CORES),
    "TF_NUM_INTRAOP_THREADS": str(CORES),
}
REPLY_TIMEOUT_SECONDS = 1800


class CommandError(Exception):
    """A child process failed; the message says how."""


def peer_python(environment: str, peers: Path) -> Path | None:
    """Returns the Python of an environment.

    Args:
      environment: "ours" for this project's own environment, or the name of a peers' environment.
      peers: the folder in which the peers' environments lie.

    Returns:
      None if the environment is not installed.
    """
    if environment == "ours":
        return Path(sys.executable)
    python = peers.absolute() / environment / "bin" / "python"
    return python if python.exists() else None


def run_module(python: Path, module: str, *arguments: str) -> None:
    """Runs `python -m module` to its end on two cores.

    Raises:
      subprocess.CalledProcessError: the process failed.
    """
    command = [str(python), "-m", module, *arguments]
    environment = {**os.environ, **TWO_CORES}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=True)


def ask(module: str, request: dict, *, python: Path | None = None) -> Any:
    """Runs `python -m module` in a new process and returns its reply; see `answer`.

    Args:
      module: a module whose main program calls `answer`.
      request: passed to the process as JSON.
      python: the interpreter, by default the current one.

    Raises:
      CommandError: the process failed, or took longer than REPLY_TIMEOUT_SECONDS.
    """
    command = [str(python or sys.executable), "-m", module, json.dumps(request)]
    with tempfile.TemporaryFile("w+") as log:
        try:
            process = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **QUIET_CPU},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=REPLY_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            message = f"the process did not end within {REPLY_TIMEOUT_SECONDS} seconds"
            raise CommandError(message) from None
        if process.returncode:
            last_line = tail(log).rpartition("\n")[2]
            raise CommandError(f"exit status {process.returncode}: {last_line}")
    return json.loads(process.stdout)


def answer(function: Callable[[dict], Any]) -> None:
    """Calls a function with the request of `ask` and prints its result as JSON."""
    replies = reply_stream()
    replies.write(json.dumps(function(json.loads(sys.argv[1]))))
    replies.flush()


def reply_stream() -> IO[str]:
    """Returns a stream to standard output, and sends all other output to standard error.

    Libraries print to standard output too, which would mix with the replies.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return replies


def tail(log: IO[str]) -> str:
    """Returns the last 2,000 characters of a log file."""
    log.seek(0)
    return log.read()[-2000:].strip()


def trainer_command(
    gin_file: str, *, data_dir: Path | str, model_dir: Path | str, params: Mapping[str, object]
) -> list[str]:
    """Returns the command that runs `trainer.main` with a gin file and further gin parameters."""
    return [
        sys.executable,
        *("-m", "trainer.main", f"--gin_file={gin_file}"),
        *(f"--data_dir={data_dir}", f"--model_dir={model_dir}"),
        *(f"--gin_param={name} = {value}" for name, value in params.items()),
    ]
