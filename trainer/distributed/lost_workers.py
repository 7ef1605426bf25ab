"""Workers that do not answer: who is missing, and how the others end."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import tensorflow as tf

from trainer.distributed import watchdog
from trainer.distributed.agreement import _count
from trainer.distributed.cluster import cluster
from tripletmill.errors import UsageError, first_line, one_line

LOST_EXIT_CODE = 1

SAY_EVERY, ASK_EVERY = 10.0, 0.2

LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)

_GO_ON = "start all workers again, with the same command: they go on from the newest checkpoint"


class WorkerLostError(Exception):
    """Another worker of the run does not answer; one line that says so and what to do."""


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Where another worker is lost, a WorkerLostError says which does not answer."""
    try:
        yield
    except LOST as error:
        if _count(strategy) == 1:
            raise
        raise _lost(*(cluster() or ([], 0)), error) from error


def _lost(addresses: Sequence[str], number: int, error: BaseException) -> WorkerLostError:
    silent = watchdog.silent(addresses, number)
    if silent:
        return WorkerLostError(f"a worker was lost: {', '.join(silent)}; {_GO_ON}")
    # The kernel of a process that stands still, or was started again, answers for it; and some
    # errors of this process's own devices look no different.
    return WorkerLostError(
        "a worker was lost: one that stands still or has ended by itself (see what it says), or"
        f" this one failed ({first_line(error)}); {_GO_ON}"
    )


@contextlib.contextmanager
def ended_if_lost() -> Iterator[None]:
    """Ends the process with one line where another worker is lost, and 1."""
    try:
        yield
    except WorkerLostError as error:
        _end(LOST_EXIT_CODE, f"error: {one_line(error)}")


def await_all(addresses: Sequence[str], number: int, seconds: float) -> None:
    """Waits until all workers have been started, and says every ten seconds who is missing.

    TensorFlow would wait for ever, without a word and deaf to Ctrl+C. Until all are there, each
    listens at its own address, where TensorFlow does afterwards.

    Args:
      addresses: of all workers.
      number: which of them this process is.
      seconds: how long to wait.

    Raises:
      UsageError: this worker's port is taken.
      WorkerLostError: some did not come in time.
    """
    port = int(addresses[number].rpartition(":")[2])
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UsageError(
            f"TF_CONFIG: worker {number} ({addresses[number]}) cannot use its port"
            f" ({error.strerror})"
        ) from error
    began = said = time.monotonic()
    with listener:
        while missing := watchdog.silent(addresses, number):
            now = time.monotonic()
            if now - began >= seconds:
                raise WorkerLostError(
                    f"not all of {len(addresses)} workers have come in {seconds:.0f} s; missing:"
                    f" {', '.join(missing)}; start all workers, with the same command"
                )
            if now - said >= SAY_EVERY:
                print(f"waiting for {', '.join(missing)}", file=sys.stderr, flush=True)
                said = now
            time.sleep(ASK_EVERY)


@contextlib.contextmanager
def joining(addresses: Sequence[str], number: int, seconds: float) -> Iterator[None]:
    """Ends the process, with a line that says who is missing, where this takes longer.

    A process of its own watches: while TensorFlow waits for a worker that has died since it was
    seen, it holds Python's lock. Ctrl+C and SIGTERM end this one at once.

    Args:
      addresses: of all workers.
      number: which of them this process is.
      seconds: how long it may take.

    Raises:
      WorkerLostError: one was lost before all had joined.
    """
    signals = (watchdog.SIGNAL, signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, signal.SIG_DFL) for each in signals]
    _exit_by(watchdog.SIGNAL)
    command = [sys.executable, "-I", watchdog.__file__, str(os.getpid()), str(seconds)]
    try:
        # A session of its own: Ctrl+C is not for the watchdog.
        with subprocess.Popen(
            [*command, str(number), *addresses], stdin=subprocess.PIPE, start_new_session=True
        ):
            yield
    except LOST as error:
        raise _lost(addresses, number, error) from error
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def _exit_by(number: int) -> None:
    """A signal ends the process with its number as exit code, also where Python cannot run."""
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(number, ctypes.cast(library._exit, ctypes.c_void_p))


def _end(code: int, line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    # TensorFlow is waiting for the others, and would at its own end too.
    os._exit(code)
