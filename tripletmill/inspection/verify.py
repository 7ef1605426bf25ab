"""A data set read back: everything that one file says of another, and every byte of the shards."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from tripletmill.formats import index
from tripletmill.inspection.check_files import Classes, check_info, check_lists, remarks
from tripletmill.inspection.check_shard import ShardCheck, ShardTask, check_shard
from tripletmill.inspection.check_split import SplitCheck
from tripletmill.inspection.problem import Problem

__all__ = ["Problem", "verify"]

SHARDS_AHEAD_PER_JOB = 2
UPDATE_SECONDS = 0.2
_Waiting = collections.deque[tuple[SplitCheck, int, Future[ShardCheck]]]


def verify(
    directory: str,
    *,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda images: None,
) -> Iterator[Problem]:
    """Reads a finished data set back and gives what is wrong with it.

    Each shard is read once, in order. In memory are the rows of a few shards, a record for each
    job, and some 40 bytes for each image of the data set. A problem is a cause: what follows from
    it is not named as well.

    Args:
      directory: of the data set.
      jobs: shards that are read at once; by default the number of cores.
      on_progress: called now and then with the number of records read so far.

    Returns:
      Problems as they are found; none if all is right.

    Raises:
      UsageError: there is no finished data set.
    """
    info = index.load_info(directory)
    return _verify(info, jobs or os.cpu_count() or 1, on_progress)


def _verify(
    info: index.DatasetInfo, jobs: int, on_progress: Callable[[int], None]
) -> Iterator[Problem]:
    sizes = index.file_sizes(info.directory)
    yield from remarks(info, sizes)
    yield from check_info(info)
    yield from check_lists(info)
    classes = Classes(info)
    yield from classes.problems
    counter = _Counter()
    with contextlib.ExitStack() as stack:
        splits = [
            stack.enter_context(contextlib.closing(SplitCheck(info, split, sizes, classes)))
            for split in sorted(info.num_shards)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(counter.stopped.set)
        waiting = _Waiting()
        for split, shard, task in _tasks(splits):
            waiting.append((split, shard, pool.submit(check_shard, task, counter.add)))
            if len(waiting) >= jobs * SHARDS_AHEAD_PER_JOB:
                yield from _first(waiting, counter, on_progress)
        while waiting:
            yield from _first(waiting, counter, on_progress)
        for split in splits:
            yield from split.finish()
        yield from _check_unique(splits)


class _Counter:
    """Counts records over threads, and ends them."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.count = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        if self.stopped.is_set():
            raise _StoppedError
        with self._lock:
            self.count += 1


class _StoppedError(Exception):
    pass


def _tasks(splits: Iterable[SplitCheck]) -> Iterator[tuple[SplitCheck, int, ShardTask]]:
    for split in splits:
        for shard in range(split.num_shards):
            yield split, shard, split.task(shard)


def _first(
    waiting: _Waiting, counter: _Counter, on_progress: Callable[[int], None]
) -> Iterator[Problem]:
    """What comes of the shard that has waited longest."""
    split, shard, future = waiting.popleft()
    while wait([future], UPDATE_SECONDS).not_done:
        on_progress(counter.count)
    on_progress(counter.count)
    yield from split.add(shard, future.result())


def _check_unique(splits: Sequence[SplitCheck]) -> Iterator[Problem]:
    """Source ids that occur twice, in one split or in two."""
    hashes = np.concatenate([split.source_ids for split in splits])
    hashes.sort()
    twice = hashes[1:][hashes[1:] == hashes[:-1]]
    twice = np.unique(twice[twice > 0])
    if not len(twice):
        return
    first: dict[str, str] = {}
    for split in splits:
        rows = np.flatnonzero(np.isin(split.source_ids, twice))
        for row, source_id in zip(rows, split.read_source_ids(rows), strict=True):
            place = f"row {row} of {split.file}"
            if first.setdefault(source_id, place) != place:
                what = f"source id of {first[source_id]} too"
                yield Problem(split.file, f"row {row}, {source_id}", what, "source id twice")
