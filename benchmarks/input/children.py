"""The driver's side: a process for each request."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.preprocess.commands import ROOT, SETTINGS, CommandError, tail

SECONDS = 1800


def ask(module: str, request: dict, *, python: Path | None = None) -> Any:
    """What `python -m module` replies; raises CommandError where it fails."""
    command = [str(python or sys.executable), "-m", module, json.dumps(request)]
    with tempfile.TemporaryFile("w+") as log:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **SETTINGS},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise CommandError(f"not done after {SECONDS} seconds") from None
        if done.returncode:
            last = tail(log).rpartition("\n")[2]
            raise CommandError(f"status {done.returncode}: {last}")
    return json.loads(done.stdout)
