"""Reads the records of a data set from a local disk, a bucket or memory.

Records are read inside a tf.data graph, without Python. Files are read at byte offsets, a group of
records at a time. Reading one record needs a tf.data data set, and making it takes most of the
time. The records of a group share one data set.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Protocol

import numpy as np
import tensorflow as tf

from trainer.data.damaged_records import REPLACE, STOP
from trainer.workarounds import record_at
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, load_index
from tripletmill.formats.records import FRAMING_BYTES, DamagedRecord, read_record
from tripletmill.formats.staged_index import stage
from tripletmill.storage import storage
from tripletmill.storage.staging import default_folder
from tripletmill.storage.storage import is_bucket

# Groups of records that are read from local files at once: as many as are decoded at once.
CORES = os.cpu_count() or 1

# Groups of records that are read from a bucket at once. At 50 ms a request this read 367 images a
# second instead of 35.
STREAMED_AT_ONCE = 64

NONE = ""
"""Stands in place of a damaged record."""

READ_AHEAD = "GCS_READAHEAD_BUFFER_SIZE_BYTES"


class Records(Protocol):
    """A source of records.

    Attributes:
      parallel_calls: number of groups of records to read at once.
    """

    parallel_calls: int

    def places(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What `read` needs to know about rows of the index: [...] -> arrays [...] by name."""
        ...

    def read(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Reads a group of records.

        Args:
          places: arrays by name, [G] each, see `places`.

        Returns:
          Serialized examples, [G] strings. If some records are damaged, either these records or all
          records of the group are NONE.
        """
        ...

    def read_each(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Reads a group of records like `read`, but only damaged records are NONE."""
        ...


class FileRecords:
    """Reads records from local shards, or by range from shards in a bucket."""

    def __init__(self, index: DatasetIndex) -> None:
        self._index = index
        streamed = any(map(storage.is_bucket, index.shards))
        self.parallel_calls = STREAMED_AT_ONCE if streamed else CORES
        self._paths = tf.constant([*index.shards])

    def places(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The shard, offset and length of each record."""
        index = self._index
        return {name: getattr(index, name)[rows] for name in ("shard", "offset", "length")}

    def read(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Reads all records of the group with one data set."""
        columns = self._columns(places)
        return tf.stack(
            _first_of_each(
                [record_at(*each) for each in zip(*map(tf.unstack, columns), strict=True)]
            )
        )

    def read_each(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Reads the records one by one, which takes several times as long as `read`."""

        @tf.autograph.experimental.do_not_convert
        def one(path: tf.Tensor, offset: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
            return _first_of_each([record_at(path, offset, size)])[0]

        columns = self._columns(places)
        records = tf.data.Dataset.from_tensor_slices(columns).map(one)
        return records.batch(tf.size(columns[0], tf.int64)).get_single_element()

    def _columns(self, places: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The path of each record's shard, its offset, and its size with framing in bytes."""
        paths = tf.gather(self._paths, places["shard"])
        return paths, places["offset"], tf.cast(places["length"] + FRAMING_BYTES, tf.int64)


def _first_of_each(sets: Sequence[tf.data.Dataset]) -> tuple[tf.Tensor, ...]:
    """The first element of each data set; all are NONE if one of them cannot be read."""
    # A data set of a file that cannot be opened raises errors without end, so ignore_errors alone
    # would loop for ever. The range ends after one element.
    all_sets = tf.data.Dataset.zip((tf.data.Dataset.range(1), *sets)).ignore_errors()
    instead = tf.data.Dataset.from_tensors((tf.zeros([], tf.int64), *[NONE] * len(sets)))
    return all_sets.concatenate(instead).take(1).get_single_element()[1:]


class MemoryRecords:
    """Holds all records of a split in memory, in their stored form; reads each shard once.

    For a moment this takes twice the size of the shards.
    """

    parallel_calls: int = CORES

    def __init__(self, index: DatasetIndex) -> None:
        records: list[bytes | str] = []
        ends = np.searchsorted(index.shard, range(len(index.shards)), side="right")
        with Progress() as progress:
            for shard, end in zip(index.shards, ends, strict=True):
                with storage.open_read(shard) as file:
                    for offset in index.offset[len(records) : end].tolist():
                        records.append(_payload(file, offset))
                        progress.update(
                            f"reading into memory: {len(records):,} of {len(index):,} images"
                        )
        self._records = tf.constant(records, tf.string)

    def places(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows themselves."""
        return {"row": rows}

    def read(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Copies the records from memory."""
        return tf.gather(self._records, places["row"])

    read_each = read


def _payload(file: BinaryIO, offset: int) -> bytes | str:
    """The record at an offset; NONE if it is damaged."""
    try:
        return read_record(file, offset)
    except DamagedRecord:
        return NONE


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the records of a data set are read.

    Attributes:
      folder: a folder on a local disk to which the shards of a data set in a bucket are copied,
        once for all processes of a host; None is ~/.cache/tripletmill.
      stream: read each record from the bucket when it is needed, instead of copying the shards.
      cache: hold all records of a split in memory, in their stored form.
      damaged: "stop" at a damaged record, or "replace" it by another image of its class. With
        "replace" an evaluation leaves the image out. Damaged records are named and counted in both
        cases.
    """

    folder: str | None = None
    stream: bool = False
    cache: bool = False
    damaged: str = STOP

    def __post_init__(self) -> None:
        if self.damaged not in (STOP, REPLACE):
            raise UsageError(f"Reading.damaged {self.damaged!r}: {STOP!r} or {REPLACE!r}")

    def open(self, data_dir: str, split: str) -> DatasetIndex:
        """Loads the index of a split and prepares it for reading; raises the errors of `bring`."""
        return self.bring(load_index(data_dir, split))

    def bring(self, index: DatasetIndex) -> DatasetIndex:
        """The index with its shards where they will be read.

        Shards in a bucket are copied to `folder`, unless `stream` is set.

        Raises:
          UsageError: the disk has no room for the shards; or `stream` is set, and TensorFlow would
            read far more than the records.
          OSError: the network or the bucket fails.
        """
        if not is_bucket(index.info.directory):
            return index
        if self.stream:
            _require_small_reads()
            return index
        return stage(index, folder=os.path.expanduser(self.folder or default_folder()))

    def records(self, index: DatasetIndex) -> Records:
        """The source of the records of an index that `open` or `bring` returned."""
        return MemoryRecords(index) if self.cache else FileRecords(index)


def checked(reading: Reading | None, what: str) -> Reading:
    """The setting, or `Reading()` if it is None.

    Args:
      reading: the value of a gin parameter, which may have any type in fact.
      what: name of this parameter.

    Raises:
      UsageError: the value is no `Reading`.
    """
    reading = reading or Reading()
    if not isinstance(reading, Reading):
        raise UsageError(f"{what}: @Reading(), not {reading!r}")
    return reading


def _require_small_reads() -> None:
    """Raises UsageError if TensorFlow would read 64 MB for each record.

    TensorFlow reads the environment variables when it is imported; setting them later has no
    effect. With read-ahead, a record takes one request of the read-ahead's size, which begins one
    byte before the record. It takes a second request if the first does not hold the whole record.
    Without read-ahead the fewest bytes are read, with two requests for each record. A block cache
    helps only if it holds the whole data set.
    """
    if not any(name in os.environ for name in (READ_AHEAD, "GCS_READ_CACHE_BLOCK_SIZE_MB")):
        raise UsageError(
            f"Reading.stream: without {READ_AHEAD}=65536 in the environment, TensorFlow reads 64 MB"
            " for each record; set the variable before the program starts"
        )
