"""Several processes that train together: who writes, what all agree on, and who is missing."""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from preprocessing.errors import UsageError, first_line, one_line
from preprocessing.index import DatasetInfo
from trainer import watchdog

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


# ---- What TF_CONFIG says.


def cluster() -> tuple[list[str], int] | None:
    """Addresses of the workers, and which of them this process is; None without a TF_CONFIG.

    Raises:
      UsageError: it is not what TensorFlow understands.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        config = json.loads(text)
        addresses = [str(address) for address in config["cluster"]["worker"]]
        kind, number = config["task"]["type"], int(config["task"]["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            'TF_CONFIG: {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker",'
            f' "index": N}}}}, not {text[:200]!r} ({type(error).__name__}: {error})'
        ) from error
    if kind != "worker" or {*config["cluster"]} != {"worker"}:
        raise UsageError(f"TF_CONFIG: tasks of type 'worker' only, not {kind!r}")
    if not 0 <= number < len(addresses):
        raise UsageError(f"TF_CONFIG: task.index {number}, but {len(addresses)} workers")
    if len({*addresses}) < len(addresses):
        raise UsageError("TF_CONFIG: two workers have the same address")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(f"TF_CONFIG: worker {address!r}: HOST:PORT")
    return addresses, number


# ---- What all agree on.


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes."""
    return _count(strategy) == 1 or strategy.cluster_resolver.task_id == 0


def of_all(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """A number of each process, from those that train together; every one has to ask."""
    workers = _count(strategy)
    if workers == 1:
        return [value]
    own = np.zeros([workers], np.int64)
    own[strategy.cluster_resolver.task_id] = value
    return [int(each) for each in summed(strategy, own)]


def worker_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Which of the processes that train together this one is, and how many there are."""
    count = _count(strategy)
    return (0 if count == 1 else int(strategy.cluster_resolver.task_id)), count


def summed(strategy: tf.distribute.Strategy, own: np.ndarray) -> np.ndarray:
    """The sum of the processes' arrays, of one shape and type; every one has to ask."""
    # GPUs sum no int32.
    wide = own.astype(np.int64) if np.issubdtype(own.dtype, np.integer) else own
    return _sum(strategy)(tf.constant(wide)).numpy().astype(own.dtype)


def of_chief(strategy: tf.distribute.Strategy, own: np.ndarray) -> np.ndarray:
    """The chief's array in every process, where last bits may differ; every one has to ask."""
    if _count(strategy) == 1:
        return own
    return summed(strategy, own if is_chief(strategy) else np.zeros_like(own))


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether any process has raised its flag; every one has to ask, and hears the same."""
    return any(of_all(strategy, int(flag)))


def require_same(strategy: tf.distribute.Strategy, value: int, what: str) -> None:
    """Raises UsageError in every process unless the number is the same in all."""
    values = of_all(strategy, value)
    if len({*values}) > 1:
        shown = ", ".join(f"{value:,}" for value in values)
        raise UsageError(f"{what} is not the same for all workers: {shown}")


def require_agreement(
    strategy: tf.distribute.Strategy, configuration: str, info: DatasetInfo
) -> None:
    """Raises UsageError in every process unless all have the same configuration and data set.

    Args:
      strategy: of all of them.
      configuration: what they must have in common, as text.
      info: of the data set.
    """
    data = [info.input_fingerprint, dict(info.settings), dict(info.num_images)]
    _require_same_text(
        strategy,
        configuration,
        "the workers differ in their configuration: that of {} is not that of worker 0; start all"
        " with the same --mode, --gin_file and --gin_param",
    )
    _require_same_text(
        strategy,
        json.dumps(data, sort_keys=True),
        "the workers differ in their data set: that of {} is not that of worker 0"
        "; give all the same --data_dir, or copies of it",
    )


def _require_same_text(strategy: tf.distribute.Strategy, text: str, message: str) -> None:
    # So many bits that they can be summed over the replicas of a worker.
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    digests = of_all(strategy, digest)
    others = [f"worker {i}" for i, other in enumerate(digests) if other != digests[0]]
    if others:
        raise UsageError(message.format(", ".join(others)))


def _count(strategy: tf.distribute.Strategy) -> int:
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return len(strategy.cluster_resolver.cluster_spec().job_tasks("worker"))


def _sum(strategy: tf.distribute.Strategy) -> Any:
    """Kept with the strategy: traced once for each shape."""
    if not hasattr(strategy, "_tripletmill_sum"):
        local = strategy.num_replicas_in_sync // _count(strategy)

        def of_first(value: tf.Tensor) -> tf.Tensor:
            """The value in one replica of each process, zeros in the others."""
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            return tf.where(number % local == 0, value, tf.zeros_like(value))

        @tf.function(autograph=False)
        def total(value: tf.Tensor) -> tf.Tensor:
            shares = strategy.run(of_first, args=(value,))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)

        strategy._tripletmill_sum = total
    return strategy._tripletmill_sum


# ---- Who is missing.


@contextlib.contextmanager
def losses_named(strategy: tf.distribute.Strategy) -> Iterator[None]:
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
