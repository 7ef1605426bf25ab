"""Shares the queries of a retrieval, in tiles, among the devices of a strategy."""

import contextlib
import itertools
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import tensorflow as tf

from trainer.distributed.agreement import all_reduce_sum, worker_index_and_count
from trainer.distributed.strategy import devices_of
from tripletmill.cli.progress import Progress


def for_each_tile(
    strategy: tf.distribute.Strategy | None,
    tiles: Sequence[np.ndarray],
    work: Callable[[np.ndarray], None],
    progress_name: str | None = None,
) -> None:
    """Calls a function with each tile of queries, on all devices of a strategy.

    A device takes the next tile as soon as it has finished one. Each of several workers takes its
    share of the tiles; `merge_workers` then combines their results.

    Args:
      strategy: whose devices are used; None for TensorFlow's default device. With a TPU the host's
        CPU is used, since a TPU needs fixed shapes, and the number of rows in a range is not fixed.
      tiles: row numbers [q] of queries.
      work: called by a thread of each device, in the device's scope.
      progress_name: what the progress line calls the work; None for no progress line.
    """
    worker, num_workers = (0, 1) if strategy is None else worker_index_and_count(strategy)
    tiles = tiles[worker::num_workers]
    free_devices: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def run_tile(tile: np.ndarray) -> int:
        device = free_devices.get()
        try:
            with tf.device(device):
                work(tile)
        finally:
            free_devices.put(device)
        return len(tile)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_full_float32())
        progress = stack.enter_context(Progress()) if progress_name else None
        devices = _devices(strategy)
        for device in devices:
            free_devices.put(device)
        sizes: Iterator[int] = map(run_tile, tiles)
        if len(devices) > 1:  # With one device in this thread, so that Ctrl+C ends it at once.
            pool = ThreadPoolExecutor(len(devices))
            # After an error or Ctrl+C only the tiles that were begun are finished.
            stack.callback(pool.shutdown, cancel_futures=True)
            futures = [pool.submit(run_tile, tile) for tile in tiles]
            sizes = (future.result() for future in as_completed(futures))
        total = sum(map(len, tiles))
        for done in itertools.accumulate(sizes):
            if progress:
                progress.update(f"{progress_name}: {done:,} of {total:,} queries")


def merge_workers(strategy: tf.distribute.Strategy | None, values: np.ndarray) -> np.ndarray:
    """Combines the results of all workers; every worker has to call it.

    Each worker gives an array of one shape, with zeros in the places of other workers.
    """
    if strategy is None or worker_index_and_count(strategy)[1] == 1:
        return values
    return all_reduce_sum(strategy, values)


def _devices(strategy: tf.distribute.Strategy | None) -> Sequence[str | None]:
    devices = devices_of(strategy) if strategy else ()
    return ["CPU:0"] if any("TPU" in device for device in devices) else devices or [None]


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Switches TensorFloat-32 off: with it, GPUs round the factors of a matmul to 11 bits."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
