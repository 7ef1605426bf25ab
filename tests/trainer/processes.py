"""Runs scripts in processes of their own.

TensorFlow's collectives support only one number of replicas in a process.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.fixtures.cloud.processes import reserved_port
from tests.trainer import forked

ROOT = Path(__file__).parents[2]


def results(module: str, *arguments: object) -> dict[str, np.ndarray]:
    """The arrays that `python -m module OUT arguments` writes to OUT."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        done = forked.run(["-m", module, str(out), *map(str, arguments)], os.environ)
        assert not done.returncode, f"{done.stdout}\n{done.stderr}"
        return dict(np.load(out))


def workers(count: int, module: str, *arguments: object) -> list[dict[str, np.ndarray]]:
    """The arrays of several processes that TensorFlow joins to a cluster."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in range(count)]
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        tasks = [{"type": "worker", "index": index} for index in range(count)]
        environments = [
            {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks
        ]
        return together([[module, *arguments]] * count, environments)


def together(
    commands: Sequence[Sequence[object]],
    environments: Sequence[Mapping[str, str]],
    *,
    seconds: float = 300,
) -> list[dict[str, np.ndarray]]:
    """Runs [module, *arguments] for each; all processes have ended when this returns.

    Raises:
      AssertionError: a process failed or took too long; the message holds the output of all.
    """
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{i}.npz" for i in range(len(commands))]
        logs = [Path(folder) / f"{i}.log" for i in range(len(commands))]
        processes: list[subprocess.Popen] = []
        deadline = time.monotonic() + seconds
        codes: list[int | None] = []
        try:
            for (module, *rest), out, log, more in zip(
                commands, outs, logs, environments, strict=True
            ):
                with log.open("wb") as file:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", str(module), str(out), *map(str, rest)],
                            cwd=ROOT,
                            env={**os.environ, **more},
                            stdout=file,
                            stderr=subprocess.STDOUT,
                        )
                    )
            # A worker may wait forever for a worker that has failed.
            while None in (codes := [process.poll() for process in processes]):
                if any(codes) or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        output = "\n\n".join(
            f"{' '.join(map(str, command))}: {_ending(code)}\n{log.read_text(errors='replace')}"
            for command, code, log in zip(commands, codes, logs, strict=True)
        )
        assert codes == [0] * len(commands), output
        return [dict(np.load(out)) for out in outs]


def _ending(code: int | None) -> str:
    return "still running, killed" if code is None else f"exit code {code}"
