"""Threads compute results before they are needed."""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 16  # items in a batch
AHEAD_PER_THREAD = 2  # batches
T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Sequence[T], *, threads: int) -> Iterator[R]:
    """Yields the result of a function for each item, in order; threads compute results ahead.

    A thread takes AT_ONCE items at a time, because handing over an item takes as long as encoding
    a small JPEG. At most AHEAD_PER_THREAD batches a thread wait to be yielded.

    Args:
      function: called in the threads; an exception that it raises ends the iteration, and the
        results of the same batch are lost.
      items: the items; without any, nothing is yielded.
      threads: number of threads, 1 or more.
    """
    waiting: collections.deque[Future[list[R]]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for start in range(0, len(items), AT_ONCE):
                batch = items[start : start + AT_ONCE]
                waiting.append(pool.submit(lambda batch: [*map(function, batch)], batch))
                if len(waiting) >= threads * AHEAD_PER_THREAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
