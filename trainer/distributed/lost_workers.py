"""Waits for all workers to start, and ends a process with one line if another worker is lost."""

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
from trainer.distributed.agreement import worker_index_and_count
from trainer.distributed.cluster import cluster
from tripletmill.errors import UsageError, first_line, one_line

LOST_EXIT_CODE = 1

# In seconds.
SAY_EVERY, ASK_EVERY = 10.0, 0.2

# Errors of TensorFlow with which a collective operation fails if another worker is lost.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)

_GO_ON = "start all workers again with the same command: they go on from the newest checkpoint"


class WorkerLostError(Exception):
    """Another worker of the run does not answer; its message is one line that says what to do."""


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns TensorFlow's error for a lost worker into a WorkerLostError that names the worker."""
    try:
        yield
    except LOST as error:
        if worker_index_and_count(strategy)[1] == 1:
            raise
        raise _lost(*(cluster() or ([], 0)), error) from error


def _lost(addresses: Sequence[str], number: int, error: BaseException) -> WorkerLostError:
    silent = watchdog.silent(addresses, number)
    if silent:
        return WorkerLostError(f"a worker was lost: {', '.join(silent)}; {_GO_ON}")
    # A worker that hangs still accepts connections, since its kernel answers for it. A worker that
    # was started again accepts them too. Some errors of this process's own devices look the same.
    return WorkerLostError(
        "a worker was lost: another worker hangs or has ended by itself (see its output), or"
        f" this one failed ({first_line(error)}); {_GO_ON}"
    )


@contextlib.contextmanager
def ended_if_lost() -> Iterator[None]:
    """Ends the process with one line and exit code 1 if another worker is lost."""
    try:
        yield
    except WorkerLostError as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        # A normal exit would wait: TensorFlow waits for the other workers when it shuts down.
        os._exit(LOST_EXIT_CODE)


def await_all(addresses: Sequence[str], number: int, seconds: float) -> None:
    """Waits until all workers have started, and says every ten seconds which ones are missing.

    TensorFlow itself would wait for ever, without a message, and would ignore Ctrl+C. Until all
    workers have started, each listens at its own address, at which TensorFlow listens afterwards.

    Args:
      addresses: addresses of all workers.
      number: index of this process among them.
      seconds: how long to wait.

    Raises:
      UsageError: this worker's port is taken.
      WorkerLostError: some workers did not start in time.
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
                    f"not all of {len(addresses)} workers have started in {seconds:.0f} s; missing:"
                    f" {', '.join(missing)}; start all workers with the same command"
                )
            if now - said >= SAY_EVERY:
                print(f"waiting for {', '.join(missing)}", file=sys.stderr, flush=True)
                said = now
            time.sleep(ASK_EVERY)


@contextlib.contextmanager
def joining(addresses: Sequence[str], number: int, seconds: float) -> Iterator[None]:
    """Ends the process if the code within takes too long, and says which workers are missing.

    Another process, the watchdog, keeps the time: if a worker dies after it was seen, TensorFlow
    waits for it while it holds Python's global lock. Within, Ctrl+C and SIGTERM end this process at
    once.

    Args:
      addresses: addresses of all workers.
      number: index of this process among them.
      seconds: how long the code may take.

    Raises:
      WorkerLostError: a worker was lost before all had joined.
    """
    signals = (watchdog.SIGNAL, signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, signal.SIG_DFL) for each in signals]
    _exit_by(watchdog.SIGNAL)
    command = [sys.executable, "-I", watchdog.__file__, str(os.getpid()), str(seconds)]
    try:
        # In a session of its own the watchdog does not receive Ctrl+C.
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
    """Makes a signal end the process with its number as exit code, even if Python cannot run."""
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(number, ctypes.cast(library._exit, ctypes.c_void_p))
