"""Progress of a job, read off the files that its workers leave."""

import contextlib
import glob
import os
import threading
import time

from preprocessing.writing.claim import Claim, read_plan
from tripletmill.cli.progress import Progress, duration
from tripletmill.storage import storage

POLL_SECONDS = 0.5
BUCKET_POLL_SECONDS = 10.0


class ShardProgress:
    """Shows how far a job is while the block runs, whichever processes do the work.

    On a local disk in images; in a bucket in shards, which is all that can be seen there.
    """

    def __init__(self, output: str, done: str) -> None:
        """Starts nothing; `done` is what the job does with an image, such as "embedded"."""
        self._output, self._verb = output, done
        self._poll = BUCKET_POLL_SECONDS if storage.is_bucket(output) else POLL_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ShardProgress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        # Whoever waits for the job wants no error of the watching.
        with Progress() as progress, contextlib.suppress(OSError, ValueError):
            while (plan := read_plan(self._output)) is None:
                progress.update("listing the input ...")
                if self._stop.wait(self._poll):
                    return
            folder = Claim(self._output, plan).folder
            what = "shards" if storage.is_bucket(self._output) else "images"
            total = plan[f"num_{what}"]
            start, at_start = time.monotonic(), _done(folder)
            while not self._stop.wait(self._poll):
                done = max(_done(folder), at_start)
                rate = (done - at_start) / (time.monotonic() - start)
                speed = f", {rate:.{0 if rate > 10 else 2}f}/s" if rate else ""
                left = f", {duration((total - done) / rate)} left" if rate else ""
                progress.update(f"{self._verb} {done:,} of {total:,} {what}{speed}{left}")


def _done(folder: str) -> int:
    if storage.is_bucket(folder):
        return sum(f.path.endswith(".sidecar.parquet") for f in storage.list_files(folder))
    done = 0
    for path in glob.glob(os.path.join(glob.escape(folder), "*.progress")):
        with contextlib.suppress(FileNotFoundError):
            done += os.path.getsize(path)
    return done
