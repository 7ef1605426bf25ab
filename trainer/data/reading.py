"""Where the records of a data set are read from: a local disk, a bucket, or memory."""

import dataclasses
import os

from trainer.data.damaged_records import REPLACE, STOP
from trainer.data.records import FileRecords, MemoryRecords, Records
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, load_index
from tripletmill.storage import is_bucket
from tripletmill.storage.staging import default_folder, stage

READ_AHEAD = "GCS_READAHEAD_BUFFER_SIZE_BYTES"


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
