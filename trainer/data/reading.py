"""Where the records of a data set are read from (a local disk, a bucket, memory), and how.

Records are read inside a tf.data graph, without Python. Files are read at byte offsets, a group of
records at a time: most of the time that reading one record takes is TensorFlow's, for a data set of
its own, and a group shares that data set.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Protocol

import numpy as np
import tensorflow as tf

from trainer.data.damaged_records import REPLACE, STOP
from tripletmill.cli.progress import Progress
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, load_index
from tripletmill.formats.records import FRAMING_BYTES, DamagedRecord, read_record
from tripletmill.formats.staged_index import stage
from tripletmill.storage import storage
from tripletmill.storage.staging import default_folder
from tripletmill.storage.storage import is_bucket

# Groups of records at a time: of files, as many as are decoded at once.
CORES = os.cpu_count() or 1

# Of a bucket more: at 50 ms a request, 367 images a second, not 35.
STREAMED_AT_ONCE = 64

NONE = ""
"""In place of a damaged record."""

READ_AHEAD = "GCS_READAHEAD_BUFFER_SIZE_BYTES"

_plain = tf.autograph.experimental.do_not_convert


class Records(Protocol):
    """Where records come from.

    Attributes:
      parallel_calls: groups of records to be read at once.
    """

    parallel_calls: int

    def places(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What `read` needs to know of each row, [...] -> arrays [...]."""
        ...

    def read(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Places, [G] each -> serialized examples, [G] strings.

        Where some are damaged, NONE takes their place or that of all.
        """
        ...

    def read_each(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The same, but NONE takes only the place of damaged ones."""
        ...


class FileRecords:
    """Records read from the shards' files, or from objects in a bucket by range."""

    def __init__(self, index: DatasetIndex) -> None:
        self._index = index
        streamed = any(map(storage.is_bucket, index.shards))
        self.parallel_calls = STREAMED_AT_ONCE if streamed else CORES
        self._paths = tf.constant([*index.shards])

    def places(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Shard, offset and length."""
        index = self._index
        return {name: getattr(index, name)[rows] for name in ("shard", "offset", "length")}

    def read(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """All at once."""
        columns = self._columns(places)
        return tf.stack(
            _first([_from(*each) for each in zip(*map(tf.unstack, columns), strict=True)])
        )

    def read_each(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """One by one, which takes several times as long."""

        def one(path: tf.Tensor, offset: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
            return _first([_from(path, offset, size)])[0]

        columns = self._columns(places)
        records = tf.data.Dataset.from_tensor_slices(columns).map(_plain(one))
        return records.batch(tf.size(columns[0], tf.int64)).get_single_element()

    def _columns(self, places: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Path, offset and bytes of each record."""
        paths = tf.gather(self._paths, places["shard"])
        return paths, places["offset"], tf.cast(places["length"] + FRAMING_BYTES, tf.int64)


def _from(path: tf.Tensor, offset: tf.Tensor, size: tf.Tensor) -> tf.data.Dataset:
    """A data set that begins with the record at an offset."""
    # The buffer takes the record whole: one system call, or one request.
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None], compression_type="", buffer_size=size, byte_offsets=offset[None]
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def _first(sets: Sequence[tf.data.Dataset]) -> tuple[tf.Tensor, ...]:
    """The first element of each; NONE of any where one cannot be read."""
    # Of a file that cannot be opened, a data set gives errors for ever: the range ends after one.
    all_sets = tf.data.Dataset.zip((tf.data.Dataset.range(1), *sets)).ignore_errors()
    instead = tf.data.Dataset.from_tensors((tf.zeros([], tf.int64), *[NONE] * len(sets)))
    return all_sets.concatenate(instead).take(1).get_single_element()[1:]


class MemoryRecords:
    """All records of a split, held in memory as they are stored; reads every shard once.

    Twice the size of the shards is needed for a moment.
    """

    parallel_calls: int = CORES

    def __init__(self, index: DatasetIndex) -> None:
        records: list[bytes | str] = []
        ends = np.searchsorted(index.shard, range(len(index.shards)), side="right")
        with Progress() as progress:
            for shard, end in zip(index.shards, ends, strict=True):
                with storage.open_read(shard) as file:
                    for offset in index.offset[len(records) : end].tolist():
                        records.append(payload(file, offset) or NONE)
                        progress.update(f"into memory: {len(records):,} of {len(index):,} images")
        self._records = tf.constant(records, tf.string)

    def places(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows as they are."""
        return {"row": rows}

    def read(self, places: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Copies them."""
        return tf.gather(self._records, places["row"])

    read_each = read


def payload(file: BinaryIO, offset: int) -> bytes | None:
    """The record at an offset, None where it is damaged."""
    try:
        return read_record(file, offset)
    except DamagedRecord:
        return None


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the records of a data set are read.

    Attributes:
      folder: where the shards of a data set in a bucket are brought to, on a local disk, once for
        all processes of a host; None is ~/.cache/tripletmill.
      stream: instead, read each record from the bucket when it is needed.
      cache: hold all records of a split in memory, as they are stored.
      damaged: "stop" at a damaged record, or "replace" it by another image of its class (in an
        evaluation: leave it out); it is named and counted either way.
    """

    folder: str | None = None
    stream: bool = False
    cache: bool = False
    damaged: str = STOP

    def __post_init__(self) -> None:
        if self.damaged not in (STOP, REPLACE):
            raise UsageError(f"Reading.damaged {self.damaged!r}: {STOP!r} or {REPLACE!r}")

    def open(self, data_dir: str, split: str) -> DatasetIndex:
        """The index of a split, its shards where they will be read; errors as `bring`."""
        return self.bring(load_index(data_dir, split))

    def bring(self, index: DatasetIndex) -> DatasetIndex:
        """The index with its shards where they will be read: staged, if they lie in a bucket.

        Raises:
          UsageError: no room; or streaming, where TensorFlow would read far too much.
          OSError: a network or bucket in trouble.
        """
        if not is_bucket(index.info.directory):
            return index
        if self.stream:
            _require_little_reads()
            return index
        return stage(index, folder=os.path.expanduser(self.folder or default_folder()))

    def records(self, index: DatasetIndex) -> Records:
        """Reads the records of an index that was opened."""
        return MemoryRecords(index) if self.cache else FileRecords(index)


def checked(reading: Reading | None, what: str) -> Reading:
    """The setting or its default; raises UsageError for anything else."""
    reading = reading or Reading()
    if not isinstance(reading, Reading):
        raise UsageError(f"{what}: @Reading(), not {reading!r}")
    return reading


def _require_little_reads() -> None:
    """Raises UsageError where TensorFlow would read 64 MB for each record.

    It looks at these when it is imported: later is too late. A record then costs one request of
    read-ahead's size, which begins a byte before the record, or a second one where that does not
    hold it. Least bytes (none ahead) are two requests for each, and a cache of blocks helps only
    as far as it holds the whole data set.
    """
    if not any(name in os.environ for name in (READ_AHEAD, "GCS_READ_CACHE_BLOCK_SIZE_MB")):
        raise UsageError(
            f"Reading.stream: without {READ_AHEAD}=65536 in the environment from before TensorFlow"
            " is imported, it reads 64 MB for each record"
        )
