"""Finds damaged records, and decides whether a run may go on with other images."""

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
_RESTORE = "what was saved before is kept; restore the file, or preprocess again"


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A record that cannot be read.

    Attributes:
      file: the shard that holds it.
      offset: where the record's framing begins in this file, in bytes.
      source_id: name of its image in the input of preprocessing.
      problem: what is wrong, in one short line.
    """

    file: str
    offset: int
    source_id: str
    problem: str

    def __str__(self) -> str:
        """Says in one line which record is damaged, and how."""
        return (
            f"record of {self.source_id} in {self.file} at offset {self.offset} is damaged"
            f" ({self.problem})"
        )


def find_damaged(index: DatasetIndex, rows: np.ndarray, *, decode: bool = False) -> list[Damaged]:
    """Reads records again, each once, and lists the damaged ones.

    Args:
      index: the index of a split.
      rows: [N] rows of the index; a row may come several times.
      decode: whether to decode the images too, instead of checking the checksums only.

    Returns:
      The damaged records in ascending order of their rows; empty if all can be read.
    """
    damaged = []
    for row in np.unique(rows).tolist():
        file, offset = index.shards[index.shard[row]], int(index.offset[row])
        if problem := _problem(file, offset, decode):
            source_id = index.column("source_id")[row].as_py()
            damaged.append(Damaged(file, offset, source_id, problem))
    return damaged


def _problem(file: str, offset: int, decode: bool) -> str | None:
    """What is wrong with a record; None if it can be read."""
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


def summary(damaged: Sequence[Damaged], count: int) -> str:
    """Says in one line which records are damaged.

    Args:
      damaged: what `find_damaged` found.
      count: number of records that could not be read at first.
    """
    if not damaged:
        return (
            f"{count:,} records could not be read at first, but can be read now: the disk or the"
            " network has problems"
        )
    more = f", and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
    return f"{damaged[0]}{more}"


@contextlib.contextmanager
def naming_unreadable_records(
    index: DatasetIndex, rows: Callable[[], np.ndarray]
) -> Iterator[None]:
    """Turns TensorFlow's error for an image that it cannot decode into a UsageError that names it.

    Args:
      index: the index of a split.
      rows: gives the rows of the index that are read within, [N]; called only after an error.

    Raises:
      UsageError: one of these records cannot be read or decoded.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        if damaged := find_damaged(index, rows(), decode=True):
            raise UsageError(f"{summary(damaged, len(damaged))}; {_RESTORE}") from error
        raise


def require_replaceable(
    damaged: Sequence[Damaged], replaced: int, num_unreadable: int, policy: str
) -> None:
    """Raises UsageError if training must not go on with other images.

    Args:
      damaged: the damaged records.
      replaced: number of images that had to be replaced.
      num_unreadable: number of these images for which no other image could be read either.
      policy: `Reading.damaged`, STOP or REPLACE.
    """
    problem, solution = summary(damaged, replaced), _RESTORE
    if policy == STOP:
        solution += ", or set Reading.damaged = 'replace' to go on with other images of the class"
    elif num_unreadable:
        problem += ", and no other image of its class could be read instead"
    else:
        return
    raise UsageError(f"{problem}; {solution}")
