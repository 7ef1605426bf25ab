"""Stopping in an orderly way: after Ctrl+C or SIGTERM, the steps in hand are finished."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator


@dataclasses.dataclass
class Stop:
    """Whether a run was asked to stop.

    Attributes:
      asked: whether a signal has asked the run to stop.
      at_once: whether a signal ends the process immediately, because there is nothing to finish.
    """

    at_once: bool
    asked: bool = False


@contextlib.contextmanager
def on_signals(*, at_once: bool = False) -> Iterator[Stop]:
    """Handles Ctrl+C and SIGTERM within the context.

    The first signal sets `Stop.asked`. A second Ctrl+C ends the process immediately, and so does
    any signal while `Stop.at_once` is set.

    Args:
      at_once: initial value of `Stop.at_once`.
    """
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
    """Prints a line if Ctrl+C or SIGTERM ends what runs within; the exit code stays 128 + signal.

    Args:
      line: what the user can do next.
    """

    def end(number: int, _: object) -> None:
        _say(line)
        raise SystemExit(128 + number)

    with _handled(end):
        yield


def _say(line: str) -> None:
    # The signal may have interrupted a print, so print cannot be used here. Ctrl+C also ends the
    # `tee` that reads the output, so writing may fail.
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
