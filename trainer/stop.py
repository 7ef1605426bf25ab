"""Stopping in an orderly way: Ctrl+C and SIGTERM finish the steps in hand."""

import contextlib
import os
import signal
from collections.abc import Iterator


class Stop:
    """Whether a run was asked to stop."""

    asked = False


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """What Ctrl+C and SIGTERM set; a second Ctrl+C stops at once."""
    stop = Stop()

    def ask(number: int, _: object) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True
        # Not print: this may have come in the middle of another one.
        os.write(2, b"\nfinishing the steps in hand; Ctrl+C again stops at once\n")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
