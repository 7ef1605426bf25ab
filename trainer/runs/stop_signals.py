"""Stopping in an orderly way: Ctrl+C and SIGTERM finish the steps in hand."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator


class Stop:
    """Whether a run was asked to stop.

    Attributes:
      asked: so.
      at_once: whether it ends where it is, since it has nothing to finish.
    """

    def __init__(self, *, at_once: bool) -> None:
        self.asked, self.at_once = False, at_once


@contextlib.contextmanager
def on_signals(*, at_once: bool = False) -> Iterator[Stop]:
    """What Ctrl+C and SIGTERM set; a second Ctrl+C stops at once, as all do while `at_once` is."""
    stop = Stop(at_once=at_once)

    def ask(number: int, _: object) -> None:
        if number == signal.SIGINT and (stop.asked or stop.at_once):
            raise KeyboardInterrupt
        if stop.at_once:
            raise SystemExit(128 + number)
        stop.asked = True
        _say("finishing the steps in hand; Ctrl+C again stops at once")

    with _handled(ask):
        yield stop


@contextlib.contextmanager
def printing_on_stop(line: str) -> Iterator[None]:
    """Where Ctrl+C or SIGTERM ends what is within, the line says what to do; exit code as ever."""

    def end(number: int, _: object) -> None:
        _say(line)
        raise SystemExit(128 + number)

    with _handled(end):
        yield


def _say(line: str) -> None:
    # Not print: this may have come in the middle of another one. Ctrl+C also ends the `tee` that
    # the lines may go to.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in signals]
    try:
        yield
    finally:
        for number, former in zip(signals, before, strict=True):
            signal.signal(number, former)
