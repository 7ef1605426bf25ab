"""Tiles of queries, shared by the devices of a strategy."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import numpy as np
import tensorflow as tf

from trainer.distributed.agreement import all_reduce_sum, worker_index_and_count
from trainer.distributed.strategy import devices_of
from tripletmill.cli.progress import Progress


def share(
    strategy: tf.distribute.Strategy | None,
    tiles: Sequence[np.ndarray],
    work: Callable[[np.ndarray], None],
    what: str | None = None,
) -> None:
    """Calls a function with each tile, on the devices of a strategy; tiles are taken in turns.

    Of several workers each does its share; `of_all` then brings together what they found.

    Args:
      strategy: whose devices; None for TensorFlow's first alone. A TPU's host computes for it: what
        lies within a range is of no fixed size.
      tiles: [q] each, row numbers of queries.
      work: called in the scope of a device, by a thread of each.
      what: it is, for the progress line; None for no line.
    """
    worker, workers = (0, 1) if strategy is None else worker_index_and_count(strategy)
    own = tiles[worker::workers]
    waiting, total, lock = iter(own), sum(map(len, own)), threading.Lock()
    done = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(_whole_float32())
        progress = stack.enter_context(Progress()) if what else None

        def work_off(device: str | None) -> None:
            nonlocal done
            with tf.device(device):
                while True:
                    with lock:
                        tile = next(waiting, None)
                    if tile is None:
                        return
                    work(tile)
                    with lock:
                        done += len(tile)
                        if progress:
                            progress.update(f"{what}: {done:,} of {total:,} queries")

        devices = _devices(strategy)
        if len(devices) == 1:  # in this thread, which Ctrl+C ends
            work_off(devices[0])
            return
        pool = stack.enter_context(ThreadPoolExecutor(len(devices)))
        threads = [pool.submit(work_off, device) for device in devices]
        try:
            wait(threads, return_when=FIRST_EXCEPTION)
        finally:
            with lock:
                waiting = iter(())  # after an error, or Ctrl+C, only what is in hand is finished
        for thread in threads:
            thread.result()


def of_all(strategy: tf.distribute.Strategy | None, found: np.ndarray) -> np.ndarray:
    """What all workers found, each in its own places of an array of zeros; every one has to ask."""
    if strategy is None or worker_index_and_count(strategy)[1] == 1:
        return found
    return all_reduce_sum(strategy, found)


def _devices(strategy: tf.distribute.Strategy | None) -> Sequence[str | None]:
    devices = devices_of(strategy) if strategy else ()
    return ["CPU:0"] if any("TPU" in device for device in devices) else devices or [None]


@contextlib.contextmanager
def _whole_float32() -> Iterator[None]:
    """GPUs round the factors of a float32 matmul to 11 bits unless they are told not to."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
