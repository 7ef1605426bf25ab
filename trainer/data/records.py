"""Rows of the index -> serialized records, inside a tf.data graph and without Python.

Files are read at byte offsets, a group of records at a time: most of the time that reading one
takes is TensorFlow's, for a data set of its own, and a group shares it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Protocol

import numpy as np
import tensorflow as tf

from tripletmill import storage
from tripletmill.cli.progress import Progress
from tripletmill.formats.index import DatasetIndex
from tripletmill.formats.records import FRAMING_BYTES, DamagedRecord, read_record

# Groups of records at a time: of files, as many as are decoded at once.
CORES = os.cpu_count() or 1
# Of a bucket more: at 50 ms a request, 367 images a second, not 35.
STREAMED_AT_ONCE = 64

NONE = ""
"""In place of a damaged record."""


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


_plain = tf.autograph.experimental.do_not_convert


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
