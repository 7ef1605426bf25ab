"""Damaged records: which they are, and the list of them that lies beside a run."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex
from tripletmill.formats.records import DamagedRecord, decode_example, read_record
from tripletmill.storage import storage

STOP, REPLACE = "stop", "replace"
_RESTORE = "what was saved before is kept; restore it, or preprocess again"


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A record that cannot be read.

    Attributes:
      file: of its shard.
      offset: of its framing, bytes.
      source_id: of its image.
      problem: what is wrong, one short line.
    """

    file: str
    offset: int
    source_id: str
    problem: str

    def __str__(self) -> str:
        """One line."""
        return (
            f"record of {self.source_id} in {self.file} at offset {self.offset} is damaged"
            f" ({self.problem})"
        )


def find_damaged(index: DatasetIndex, rows: np.ndarray, *, decode: bool = False) -> list[Damaged]:
    """Reads these rows of the index, each once, and names those that are damaged.

    Args:
      index: of a split.
      rows: [N].
      decode: whether to try the images too; else the checksums alone.
    """
    found = []
    for row in np.unique(rows).tolist():
        file, offset = index.shards[index.shard[row]], int(index.offset[row])
        if problem := _problem(file, offset, decode):
            source_id = index.column("source_id")[row].as_py()
            found.append(Damaged(file, offset, source_id, problem))
    return found


def _problem(file: str, offset: int, decode: bool) -> str | None:
    try:
        with storage.open_read(file) as opened:
            payload = read_record(opened, offset)
        if decode:
            tf.io.decode_jpeg(decode_example(payload)["image/encoded"])
    except DamagedRecord as error:
        return error.problem
    except OSError as error:
        return error.strerror or str(error)
    except (KeyError, ValueError, tf.errors.InvalidArgumentError):
        return "it holds no JPEG"
    return None


def summary(found: Sequence[Damaged], count: int) -> str:
    """Names the first of so many images whose records could not be read."""
    if not found:
        return f"{count:,} records could not be read, but can be now: a disk or network in trouble"
    more = f", and {len(found) - 1:,} more" if len(found) > 1 else ""
    return f"{found[0]}{more}"


@contextlib.contextmanager
def naming_unreadable_records(
    index: DatasetIndex, rows: Callable[[], np.ndarray]
) -> Iterator[None]:
    """Where TensorFlow cannot decode one of these rows of the index, a UsageError says which."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        if found := find_damaged(index, rows(), decode=True):
            raise UsageError(f"{summary(found, len(found))}; {_RESTORE}") from error
        raise


def require_replaceable(found: Sequence[Damaged], replaced: int, black: int, damaged: str) -> None:
    """Raises UsageError where training is not to go on with other images.

    Args:
      found: the damaged records.
      replaced: images that had to be replaced.
      black: of those the ones for which there was no other.
      damaged: STOP or REPLACE.
    """
    if damaged == STOP:
        raise UsageError(
            f"{summary(found, replaced)}; {_RESTORE}, or set Reading.damaged = 'replace' to go on"
            " with other images of the class"
        )
    if black:
        raise UsageError(
            f"{summary(found, replaced)}; nor could another image of its class be read; {_RESTORE}"
        )
