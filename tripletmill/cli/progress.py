"""Shows the progress of long work: one line that updates on a terminal, plain lines in a log."""

import sys
import time
from typing import TextIO

LOG_SECONDS = 10.0
TERMINAL_SECONDS = 0.2


class Progress:
    """Prints the newest of many updates, at intervals that leave time to read it.

    If printing fails, because the pipe is closed or the disk of the log is full, the work continues
    without any output.

    Example:
      with Progress() as progress:
          progress.update("step 10 of 100")
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._every = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
        # The first update is not printed to a log, so that short work leaves the log empty.
        self._printed_at = -float("inf") if self._terminal else time.monotonic()
        self._open_line = self._silent = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._open_line:
            self._write("\n")
            self._open_line = False

    def update(self, text: str, *, force: bool = False) -> None:
        """Shows the text. Without `force`, a text soon after another one is not shown."""
        now = time.monotonic()
        if not force and now - self._printed_at < self._every:
            return
        self._printed_at = now
        if self._terminal:
            self._write(f"\r\x1b[2K{text}")
            self._open_line = True
        else:
            self._write(f"{text}\n")

    def line(self, text: str) -> None:
        """Prints a line that later updates do not overwrite."""
        clear = "\r\x1b[2K" if self._open_line else ""
        self._open_line = False
        self._write(f"{clear}{text}\n")

    def _write(self, text: str) -> None:
        if self._silent:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._silent = True


def byte_size(size: float) -> str:
    """Formats bytes as "7 bytes", "1.2 kB", "1.2 MB", "1.2 GB" or "1.2 TB"."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:,.1f} TB"


def duration(seconds: float) -> str:
    """Formats seconds as "42 s", "3 min 20 s" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
