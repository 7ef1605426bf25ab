"""Reads a data set back: every byte of its shards, and its files compared with each other."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.inspection.check_files import check_classes, check_info, check_lists, remarks
from tripletmill.inspection.check_shard import ShardTask, check_shard
from tripletmill.inspection.check_split import SplitCheck
from tripletmill.inspection.problem import Problem

__all__ = ["Problem", "verify"]

SHARDS_AHEAD_PER_JOB = 2
UPDATE_SECONDS = 0.2


def verify(
    directory: str,
    *,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda images: None,
) -> Iterator[Problem]:
    """Reads a finished data set back and yields everything that is wrong with it.

    Each shard is read once, in order. Memory holds the index rows of a few shards, one record for
    each job, and about 20 bytes for each image of the data set.

    Args:
      directory: folder of the data set.
      jobs: number of shards that are read at once; by default the number of cores.
      on_progress: called now and then with the number of records read so far.

    Returns:
      The problems as they are found; none if the data set is intact.

    Raises:
      UsageError: the folder holds no finished data set.
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
    classes, problems = check_classes(info)
    yield from problems
    counter = _Counter(on_progress)
    splits = [
        SplitCheck(info, split, sizes, None if classes is None else classes[split])
        for split in sorted(info.num_shards)
    ]
    with ThreadPoolExecutor(jobs) as pool, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(counter.stopped.set)
        for split in splits:
            yield from _check_shards(split.tasks(), pool, jobs, counter)
            yield from split.problems
            yield from split.check_sums()
        yield from _check_unique(info, {split.name: split.source_ids for split in splits})


class _Counter:
    """Counts the records that the threads read, and stops the threads."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        self.stopped = threading.Event()
        self._on_progress = on_progress
        self._count = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        if self.stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._count += 1

    def show(self) -> None:
        self._on_progress(self._count)


class _StoppedError(Exception):
    pass


def _check_shards(
    tasks: Iterator[ShardTask], pool: ThreadPoolExecutor, jobs: int, counter: _Counter
) -> Iterator[Problem]:
    """Checks shards in threads and yields their problems in order of the shards.

    At most SHARDS_AHEAD_PER_JOB shards for each job are being read or wait for their turn.
    """
    waiting: collections.deque[Future[list[Problem]]] = collections.deque()
    with contextlib.closing(tasks):  # type: ignore[type-var]
        for task in tasks:
            waiting.append(pool.submit(check_shard, task, counter.add))
            if len(waiting) >= jobs * SHARDS_AHEAD_PER_JOB:
                yield from _result(waiting.popleft(), counter)
    while waiting:
        yield from _result(waiting.popleft(), counter)


def _result(future: Future[list[Problem]], counter: _Counter) -> list[Problem]:
    while wait([future], UPDATE_SECONDS).not_done:
        counter.show()
    counter.show()
    return future.result()


def _check_unique(
    info: index.DatasetInfo, source_ids: Mapping[str, np.ndarray]
) -> Iterator[Problem]:
    """Reports source ids that occur twice, in one split or in two.

    Args:
      info: the data set.
      source_ids: [rows] hashes of the source ids, by split; 0 for a row that was not read.
    """
    hashes, counts = np.unique(np.concatenate([*source_ids.values()]), return_counts=True)
    repeated = hashes[(counts > 1) & (hashes > 0)]
    if not len(repeated):
        return
    first: dict[str, str] = {}
    for split, of_split in source_ids.items():
        file = index.index_file(info.name, split)
        rows = np.flatnonzero(np.isin(of_split, repeated))
        try:
            names = index.read_index(info, split, ["source_id"])["source_id"].take(rows)
        except UsageError:  # `SplitCheck` has reported it
            continue
        for row, source_id in zip(rows, names.to_pylist(), strict=True):
            place = f"row {row} of {file}"
            if first.setdefault(source_id, place) != place:
                message = f"source id of {first[source_id]} too"
                yield Problem(file, f"row {row}, {source_id}", message)
