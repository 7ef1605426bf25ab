"""The index of a split, and what is right only of all its shards together."""

import collections
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tripletmill.formats import index
from tripletmill.inspection.check_files import Classes, check_columns
from tripletmill.inspection.check_shard import ShardCheck, ShardTask
from tripletmill.inspection.problem import Problem, unreadable
from tripletmill.storage import storage


class SplitCheck:
    """Gives the tasks of a split's shards, takes what comes of them, and adds them up.

    Attributes:
      file: name of the index file.
      num_shards: tasks to be had, in order.
      source_ids: [rows] of the index, hashes; 0 where the shard has another.
    """

    def __init__(
        self, info: index.DatasetInfo, split: str, sizes: Mapping[str, int], classes: Classes
    ) -> None:
        self.file = index.index_file(info.name, split)
        self.num_shards = info.num_shards[split]
        self.source_ids = np.zeros(0, np.uint64)
        self._info, self._split, self._sizes, self._classes = info, split, sizes, classes
        self._shards = info.shard_files(split)
        self._problems: list[Problem] = []
        self._index: _Index | None = None
        self._numbers: dict[int, np.ndarray] = {}  # of rows, by shard that is being read
        self._labels: collections.Counter[int] = collections.Counter()
        self._suspects: set[int] = set()  # labels whose number of images is wrong for a reason
        self._has_all_rows = False  # whether _labels counts all rows that there are
        self._has_damage = False  # in shards

    def close(self) -> None:
        """Closes the index file."""
        if self._index:
            self._index.close()

    def task(self, shard: int) -> ShardTask:
        """The check of one shard; the first opens the index."""
        if shard == 0:
            self._open()
        numbers, rows = self._read_rows(shard)
        self._numbers[shard] = numbers
        crc32c = self._info.shard_crc32c.get(self._split, ())
        return ShardTask(
            path=self._info.path(self._shards[shard]),
            size=self._sizes.get(self._shards[shard]),
            rows=None if rows is None else rows.to_pylist(),
            numbers=numbers,
            names=self._classes.names(self._split),
            crc32c=crc32c[shard] if len(crc32c) == self.num_shards else None,
        )

    def _open(self) -> None:
        try:
            opened = _Index(self._info.path(self.file))
        except index.UNREADABLE as error:
            self._problems.append(unreadable(self.file, error))
            return
        expected = [*index.INDEX_SCHEMA, *(pa.field(c, pa.string()) for c in self._info.columns)]
        self._problems += check_columns(self.file, opened.schema, pa.schema(expected))
        fixed = pa.schema([f for f in opened.schema if f.name in index.INDEX_SCHEMA.names])
        if [*check_columns(self.file, fixed, index.INDEX_SCHEMA)]:
            opened.close()
            return
        try:
            opened.sort()
        except index.UNREADABLE as error:
            opened.close()
            self._problems.append(unreadable(self.file, error))
            return
        self._index, self._has_all_rows = opened, True
        self.source_ids = np.zeros(len(opened.shard), np.uint64)
        self._check_shard_numbers(opened.shard)

    def _check_shard_numbers(self, shard: np.ndarray) -> None:
        outside = (shard < 0) | (shard >= self.num_shards)
        for row in np.flatnonzero(outside):
            what = f"shard {shard[row]}; there are 0 to {self.num_shards - 1}"
            self._problems.append(Problem(self.file, f"row {row}", what, "number of a shard"))
        self._has_all_rows = not outside.any()
        inside = np.flatnonzero(~outside)
        for place in np.flatnonzero(np.diff(shard[inside]) < 0):
            before, row = inside[place], inside[place + 1]
            what = f"shard {shard[row]} after shard {shard[before]}: not in file order"
            self._problems.append(Problem(self.file, f"row {row}", what, "order of the index"))

    def _read_rows(self, shard: int) -> tuple[np.ndarray, pa.Table | None]:
        """Rows of a shard, those with empty cells left out, and their places in the index."""
        if self._index is None:
            return np.zeros(0, np.int64), None
        numbers = self._index.numbers(shard)
        try:
            rows = self._index.read(numbers)
        except index.UNREADABLE as error:
            self._problems.append(unreadable(self.file, error))
            self._has_all_rows = False
            return np.zeros(0, np.int64), None
        rows = rows.select(index.INDEX_SCHEMA.names)
        whole = np.ones(len(rows), bool)
        for column in rows.columns:
            whole &= pc.is_valid(column).to_numpy()
        for row in numbers[~whole]:
            self._problems.append(Problem(self.file, f"row {row}", "an empty cell", "empty cell"))
            self._has_all_rows = False
        rows, numbers = rows.filter(pa.array(whole)), numbers[whole]
        self._labels.update(rows["label"].to_pylist())
        return numbers, rows

    def add(self, shard: int, check: ShardCheck) -> Iterator[Problem]:
        """Takes what came of a task, and gives what is wrong up to here."""
        yield from self._problems
        self._problems.clear()
        yield from check.problems
        numbers = self._numbers.pop(shard)
        self.source_ids[numbers] = check.source_ids
        self._suspects |= check.suspects
        self._has_damage |= bool(check.problems)
        lengths = self._info.shard_lengths.get(self._split, ())
        if self._has_all_rows and not check.suspects and len(lengths) == self.num_shards:
            said = f"shardLengths has {lengths[shard]:,} for shard {shard}"
            yield from self._check_number(said, lengths[shard], len(numbers))

    def finish(self) -> Iterator[Problem]:
        """What is wrong with the sums, unless it follows from what was given before."""
        info, split = self._info, self._split
        if not self._has_damage:
            num_bytes = sum(self._sizes[shard] for shard in self._shards)
            if num_bytes != info.num_bytes.get(split):
                what = f"numBytes {info.num_bytes.get(split)}, the shards have {num_bytes}"
                yield Problem(index.INFO_FILE, f"split {split}", what, "number of bytes")
        if not self._has_all_rows:
            return
        yield from self._check_classes()
        if not self._suspects:
            images, classes = info.num_images.get(split), info.num_classes.get(split)
            num_images = self._labels.total()
            yield from self._check_number(f"num_images {images}", images, num_images)
            num_classes = len(self._labels)
            yield from self._check_number(f"num_classes {classes}", classes, num_classes)

    def _check_number(self, said: str, value: int | None, found: int) -> Iterator[Problem]:
        if value != found:
            what = f"{said}, {self.file} {found:,}"
            yield Problem(
                index.INFO_FILE, f"split {self._split}", what, "number in the description"
            )

    def _check_classes(self) -> Iterator[Problem]:
        if self._classes.rows is None:
            return
        known = self._classes.rows[self._split]
        for label in sorted({*known, *self._labels} - self._suspects):
            images = self._labels[label]
            if label not in known:
                what = f"no row for label {label}, which has {images:,} images in {self.file}"
            elif known[label][1] != images:
                name, count = known[label]
                what = f"{name!r} has {count:,} images, and {images:,} in {self.file}"
            else:
                continue
            where = f"split {self._split}, label {label}"
            yield Problem(index.CLASSES_FILE, where, what, "count of a class")

    def read_source_ids(self, rows: np.ndarray) -> list[str]:
        """Source ids of these rows of the index."""
        return self._index.read(rows, "source_id")["source_id"].to_pylist() if self._index else []


class _Index:
    """An index file, read a few row groups at a time; its errors are index.UNREADABLE."""

    def __init__(self, path: str) -> None:
        self._file = storage.open_read(path)
        try:
            self._parquet = pq.ParquetFile(
                self._file, page_checksum_verification=True, pre_buffer=False
            )
            self.schema = self._parquet.schema_arrow
            metadata = self._parquet.metadata
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        except BaseException:
            self._file.close()
            raise
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._group: tuple[object, pa.Table] | None = None

    def close(self) -> None:
        self._file.close()

    def sort(self) -> None:
        """Reads which shard each row is of."""
        column = self._parquet.read(columns=["shard"], use_threads=False)["shard"]
        self.shard = column.fill_null(-1).to_numpy()
        self._order = np.argsort(self.shard, kind="stable")
        self._sorted = self.shard[self._order]

    def numbers(self, shard: int) -> np.ndarray:
        """Places of a shard's rows."""
        first, last = np.searchsorted(self._sorted, [shard, shard + 1])
        return self._order[first:last]

    def read(self, numbers: np.ndarray, *columns: str) -> pa.Table:
        """The rows at these places, which are in order; of all columns unless some are named."""
        groups = np.unique(np.searchsorted(self._ends, numbers, side="right")).tolist()
        key = groups, columns
        # Where a row group holds many shards, it is not read again for each.
        if self._group is None or self._group[0] != key:
            table = self._parquet.read_row_groups(
                groups, columns=[*columns] or None, use_threads=False
            )
            table.validate(full=True)  # text that is no UTF-8 would fail later
            self._group = key, table
        starts = np.r_[0, self._ends]
        places = [np.arange(starts[group], starts[group + 1]) for group in groups]
        rows = np.searchsorted(np.concatenate([*places, np.zeros(0, np.int64)]), numbers)
        return self._group[1].take(rows)
