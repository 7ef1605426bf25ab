"""Reads a data set back: every byte of its shards, and its files compared with each other."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pyarrow as pa

from tripletmill.formats import index
from tripletmill.inspection.check_files import check_classes, check_info, check_lists, remarks
from tripletmill.inspection.check_index import check_counts, check_index, check_source_ids
from tripletmill.inspection.check_shard import ShardTask, check_shard
from tripletmill.inspection.problem import Problem

__all__ = ["Problem", "verify"]

UPDATE_SECONDS = 0.2


def verify(
    directory: str,
    *,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda images: None,
) -> Iterator[Problem]:
    """Reads a finished data set back and yields each problem as soon as it is found.

    Each shard is read once, in order. Memory holds the index of one split, the source ids of all
    splits, and for each job one record and the index rows of one shard.

    Args:
      directory: folder of the data set.
      jobs: number of shards that are read at once; by default the number of cores.
      on_progress: called now and then with the number of records read so far.

    Raises:
      UsageError: the folder holds no finished data set.
    """
    info = index.load_info(directory)
    sizes = index.file_sizes(info.directory)
    yield from remarks(info, sizes)
    yield from check_info(info)
    yield from check_lists(info)
    names, classes, problems = check_classes(info)
    yield from problems
    counter = _Counter(on_progress)
    indexes: dict[str, pa.Table] = {}
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(counter.stopped.set)
        for split in sorted(info.num_shards):
            rows, problems = check_index(info, split)
            yield from problems
            files, checksums = info.shard_files(split), info.shard_crc32c.get(split, ())
            results = []
            for shard, file in enumerate(files):
                crc32c = checksums[shard] if len(checksums) == len(files) else None
                task = ShardTask(info.path(file), shard, rows, names, crc32c)
                results.append(pool.submit(check_shard, task, counter.add))
            for result in results:
                while wait([result], UPDATE_SECONDS).not_done:
                    counter.show()
                counter.show()
                yield from result.result()
            yield from check_counts(info, split, rows, sizes, classes)
            if rows is not None:
                indexes[split] = rows.select(["number", "source_id"])
        yield from check_source_ids(info, indexes)


class _Counter:
    """Counts the records that the threads read, and stops the threads."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        self.stopped = threading.Event()
        self._on_progress = on_progress
        self._count = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        if self.stopped.is_set():
            raise CancelledError
        with self._lock:
            self._count += 1

    def show(self) -> None:
        self._on_progress(self._count)
