"""Checks the index of a split and the numbers that dataset_info.json gives for the split."""

import collections
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.inspection.check_files import check_columns
from tripletmill.inspection.check_shard import ShardTask
from tripletmill.inspection.problem import Problem, unreadable
from tripletmill.storage import storage

_UNREADABLE = (*index.UNREADABLE, UsageError)


class SplitCheck:
    """Reads the index of a split shard by shard, and counts its rows.

    Attributes:
      name: name of the split.
      problems: of the index file; complete once `tasks` has ended.
      source_ids: [rows] 64-bit hashes of the source ids; 0 for a row that has not been read.
    """

    def __init__(
        self,
        info: index.DatasetInfo,
        split: str,
        sizes: Mapping[str, int],
        classes: Mapping[int, tuple[str, int]] | None,
    ) -> None:
        """Prepares the check of a split.

        Args:
          info: the data set.
          split: name of the split.
          sizes: bytes of each file in the folder, by name.
          classes: (name, count) by label; None if classes.parquet cannot be read.
        """
        self.name = split
        self.problems: list[Problem] = []
        self.source_ids = np.zeros(0, np.uint64)
        self._info, self._sizes, self._classes = info, sizes, classes
        self._file = index.index_file(info.name, split)
        self._shards = info.shard_files(split)
        self._num_rows: list[int] = []  # by shard
        self._images: collections.Counter[int] = collections.Counter()  # by label

    def tasks(self) -> Iterator[ShardTask]:
        """Yields the tasks of `check_shard` for each shard, in order."""
        shard_of = self._read_shard_numbers()
        checksums = self._info.shard_crc32c.get(self.name, ())
        for shard, file in enumerate(self._shards):
            rows = None
            if shard_of is not None:
                rows = self._read_rows(np.flatnonzero(shard_of == shard))
            yield ShardTask(
                path=self._info.path(file),
                size=self._sizes.get(file),
                rows=rows,
                names={label: name for label, (name, _) in (self._classes or {}).items()},
                crc32c=checksums[shard] if len(checksums) == len(self._shards) else None,
            )

    def _report(self, message: str, row: int) -> None:
        self.problems.append(Problem(self._file, f"row {row}", message))

    def _read_shard_numbers(self) -> np.ndarray | None:
        """Reads the shard of each row, [rows]; None if the index cannot be read."""
        try:
            with storage.open_read(self._info.path(self._file)) as file:
                schema = pq.ParquetFile(file, pre_buffer=False).schema_arrow
            further = [pa.field(name, pa.string()) for name in self._info.columns]
            expected = pa.schema([*index.INDEX_SCHEMA, *further])
            self.problems += check_columns(self._file, schema, expected)
            if not {*index.INDEX_SCHEMA} <= {*schema}:
                return None
            column = index.read_index(self._info, self.name, ["shard"])["shard"]
        except _UNREADABLE as error:
            self.problems.append(unreadable(self._file, error))
            return None
        shard_of = column.fill_null(-1).to_numpy()
        last = len(self._shards) - 1
        for row in np.flatnonzero((shard_of < 0) | (shard_of > last)).tolist():
            self._report(f"shard {column[row]}; the shards are 0 to {last}", row)
        for row in (np.flatnonzero(np.diff(shard_of) < 0) + 1).tolist():
            before = shard_of[row - 1]
            self._report(f"shard {shard_of[row]} after shard {before}: not in file order", row)
        self.source_ids = np.zeros(len(shard_of), np.uint64)
        return shard_of

    def _read_rows(self, numbers: np.ndarray) -> list[dict[str, Any]] | None:
        """Reads the rows with these numbers, except rows that have an empty cell."""
        first, stop = (numbers[0], numbers[-1] + 1) if len(numbers) else (0, 0)
        path, columns = self._info.path(self._file), index.INDEX_SCHEMA.names
        try:
            table = index.read_index_rows(path, range(first, stop), columns).take(numbers - first)
        except _UNREADABLE as error:
            self.problems.append(unreadable(self._file, error))
            return None
        has_empty = np.zeros(len(table), bool)
        for column in table.columns:
            has_empty |= pc.is_null(column).to_numpy()
        for row in numbers[has_empty].tolist():
            self._report("an empty cell", row)
        table = table.append_column("number", pa.array(numbers)).filter(pa.array(~has_empty))
        rows = table.to_pylist()
        self._num_rows.append(len(rows))
        self._images.update(row["label"] for row in rows)
        for row in rows:
            self.source_ids[row["number"]] = _hash(row["source_id"])
        return rows

    def check_sums(self) -> Iterator[Problem]:
        """Compares the numbers of dataset_info.json and classes.parquet with shards and index."""
        info, split = self._info, self.name
        where = f"split {split}"
        num_bytes = sum(self._sizes.get(shard, 0) for shard in self._shards)
        if info.num_bytes[split] != num_bytes:
            message = f"numBytes {info.num_bytes[split]}, the shards have {num_bytes}"
            yield Problem(index.INFO_FILE, where, message)
        if len(self._num_rows) < len(self._shards):
            return  # parts of the index could not be read, so there is nothing to compare with
        numbers = [
            ("num_images", info.num_images[split], self._images.total()),
            ("num_classes", info.num_classes[split], len(self._images)),
        ]
        for shard, length in enumerate(info.shard_lengths[split][: len(self._shards)]):
            numbers.append((f"shardLengths of shard {shard}", length, self._num_rows[shard]))
        for name, expected, counted in numbers:
            if expected != counted:
                message = f"{name} {expected:,}, {self._file} {counted:,}"
                yield Problem(index.INFO_FILE, where, message)
        if self._classes is None:
            return
        for label in sorted({*self._classes, *self._images}):
            name, count = self._classes.get(label, ("", None))
            images = self._images[label]
            if count is None:
                message = f"no row for label {label}, which has {images:,} images in {self._file}"
            elif count != images:
                message = f"{name!r} has {count:,} images, and {images:,} in {self._file}"
            else:
                continue
            yield Problem(index.CLASSES_FILE, f"{where}, label {label}", message)


def _hash(source_id: str) -> int:
    """Hashes a source id to 64 bits; the hash is at least 1."""
    data = source_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1
