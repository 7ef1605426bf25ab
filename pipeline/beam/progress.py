"""Shows the progress of a job, which it reads from the files that the workers write."""

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
    """Shows the progress of a job while the block runs, whichever processes do the work.

    On a local disk it counts images. In a bucket only finished shards are visible, so it counts
    shards there.
    """

    def __init__(self, output: str, verb: str) -> None:
        """Prepares the display.

        Args:
          output: output folder of the job.
          verb: what the job does with an image, such as "embedded".
        """
        self._output, self._verb = output, verb
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
        # An error of this display must not disturb the job.
        with Progress() as progress, contextlib.suppress(OSError, ValueError):
            while (plan := read_plan(self._output)) is None:
                progress.update("listing the input ...")
                if self._stop.wait(self._poll):
                    return
            folder = Claim(self._output, plan).folder
            unit = "shards" if storage.is_bucket(self._output) else "images"
            total = plan[f"num_{unit}"]
            start, at_start = time.monotonic(), _num_done(folder)
            while not self._stop.wait(self._poll):
                done = max(_num_done(folder), at_start)
                rate = (done - at_start) / (time.monotonic() - start)
                speed = f", {rate:.{0 if rate > 10 else 2}f}/s" if rate else ""
                left = f", {duration((total - done) / rate)} left" if rate else ""
                progress.update(f"{self._verb} {done:,} of {total:,} {unit}{speed}{left}")


def _num_done(folder: str) -> int:
    """Returns the number of finished shards in a bucket, or of finished images on a disk."""
    if storage.is_bucket(folder):
        return sum(f.path.endswith(".sidecar.parquet") for f in storage.list_files(folder))
    done = 0
    for path in glob.glob(os.path.join(glob.escape(folder), "*.progress")):
        with contextlib.suppress(FileNotFoundError):
            done += os.path.getsize(path)
    return done
