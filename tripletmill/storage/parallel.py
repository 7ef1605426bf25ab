"""Threads that work ahead of whoever takes their results."""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 16
AHEAD_PER_THREAD = 2  # times AT_ONCE
T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Sequence[T], *, threads: int) -> Iterator[R]:
    """The function of each item, in order; a bounded number of results ahead.

    A thread takes some items at a time: handing over one takes as long as a small image's JPEG.
    """
    waiting: collections.deque[Future[list[R]]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for start in range(0, len(items), AT_ONCE):
                some = items[start : start + AT_ONCE]
                waiting.append(pool.submit(lambda some: [function(item) for item in some], some))
                if len(waiting) >= threads * AHEAD_PER_THREAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
