"""A worker process of a local run: Beam's own worker, without its superfluous messages.

Beam's worker prints every error that it also sends to the job. It also prints long tracebacks when
the job ends first, and on Ctrl+C, which a terminal sends to the workers too.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

from apache_beam.runners.worker import sdk_worker_main

# When a job ends, its channels close some time before its process is gone.
PARENT_SECONDS = 2.0


def main() -> None:
    """Works for the job that is the parent process, until the job ends."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_job, args=(parent,), daemon=True).start()
    print_error = threading.excepthook

    def hook(args: Any) -> None:
        _restore_stderr_or_end(parent)
        print_error(args)

    threading.excepthook = hook
    with open(os.devnull, "w", encoding="utf-8") as sys.stderr:
        try:
            sdk_worker_main.main(sys.argv)
        except Exception:
            _restore_stderr_or_end(parent)
            raise


def _end_with_job(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _restore_stderr_or_end(parent: int) -> None:
    """Ends this process if the job is gone; otherwise makes the error of this worker visible."""
    deadline = time.monotonic() + PARENT_SECONDS
    while time.monotonic() < deadline:
        if os.getppid() != parent:
            os._exit(1)
        time.sleep(0.05)
    sys.stderr = sys.__stderr__
