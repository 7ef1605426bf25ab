"""Progress of a preprocessing job, read off the files that its workers leave."""

import contextlib
import glob
import json
import os
import threading
import time

from preprocessing import commit
from preprocessing.progress import Progress, duration

POLL_SECONDS = 0.5


class ShardProgress:
    """Shows images done while the block runs, whichever processes of this machine do the work."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ShardProgress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with Progress() as progress:
            while (total := self._total()) is None:
                progress.update("listing the input ...")
                if self._stop.wait(POLL_SECONDS):
                    return
            start, at_start = time.monotonic(), self._done()
            while not self._stop.wait(POLL_SECONDS):
                done = max(self._done(), at_start)
                rate = (done - at_start) / (time.monotonic() - start)
                left = f", {duration((total - done) / rate)} left" if rate else ""
                progress.update(f"preprocessed {done:,} of {total:,} images, {rate:.0f}/s{left}")

    def _total(self) -> int | None:
        try:
            with open(os.path.join(self._work, commit.PLAN_FILE), encoding="utf-8") as file:
                return json.load(file)["num_images"]
        except FileNotFoundError:
            return None

    def _done(self) -> int:
        done = 0
        for path in glob.glob(os.path.join(glob.escape(self._work), "*.progress")):
            with contextlib.suppress(FileNotFoundError):
                done += os.path.getsize(path)
        return done
