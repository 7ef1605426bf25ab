"""A worker process of a local run: Beam's own, without a word about what its job knows.

Beam's prints every error that it also sends to the job, and ends in pages of traceback when the
job ends first, or on Ctrl+C, which a terminal sends to workers too.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

from apache_beam.runners.worker import sdk_worker_main

# A process closes its channels some time before it is gone.
PARENT_SECONDS = 2.0


def main() -> None:
    """Works for the job that is the parent process, until that ends."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    print_error = threading.excepthook

    def hook(args: Any) -> None:
        _speak_or_end(parent)
        print_error(args)

    threading.excepthook = hook
    with open(os.devnull, "w", encoding="utf-8") as sys.stderr:
        try:
            sdk_worker_main.main(sys.argv)
        except Exception:
            _speak_or_end(parent)
            raise


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _speak_or_end(parent: int) -> None:
    """Ends this process if the job is gone; else what has failed here is to be seen."""
    deadline = time.monotonic() + PARENT_SECONDS
    while time.monotonic() < deadline:
        if os.getppid() != parent:
            os._exit(1)
        time.sleep(0.05)
    sys.stderr = sys.__stderr__
