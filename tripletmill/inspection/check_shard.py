"""Reads one shard, checks its checksums, and compares each record with its row of the index."""

import bisect
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc
from PIL import JpegImagePlugin

from tripletmill.formats import tfds_layout
from tripletmill.formats.records import DamagedRecord, decode_example, read_records
from tripletmill.inspection.problem import Problem, unreadable
from tripletmill.storage import storage

_NUMBERS = ("image/class/label", "image/height", "image/width")
_TYPES = {
    name: int if name in _NUMBERS else bytes
    for name in tfds_layout.features_json()["content"]["features"]
}
# Columns of the index, and the features of a record that must be equal to them.
_IN_BOTH = {
    "label": "image/class/label",
    "height": "image/height",
    "width": "image/width",
    "source_id": "image/source_id",
    "sha256": "image/key/sha256",
}

Rows = dict[int, dict[str, Any]]  # rows of the index by offset


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard to be read.

    Attributes:
      path: path of the file.
      number: number of the shard in its split, from 0.
      rows: all rows of the split's index, as `check_index` returns them; None if they cannot be
        read.
      names: class names by label, as far as they are known.
      crc32c: checksum of the whole file; None if dataset_info.json has none.
    """

    path: str
    number: int
    rows: pa.Table | None
    names: Mapping[int, str]
    crc32c: int | None


def check_shard(task: ShardTask, on_image: Callable[[], None] = lambda: None) -> list[Problem]:
    """Reads a shard once, in order, with one record in memory, and continues after damage.

    Args:
      task: the shard.
      on_image: called for each record; an exception that it raises ends the check.

    Returns:
      The problems in the order in which they were found; none if the shard is intact.
    """
    rows: Rows | None = None
    if task.rows is not None:
        in_shard = task.rows.filter(pc.equal(task.rows["shard"], task.number))
        rows = {row["offset"]: row for row in in_shard.to_pylist()}
    file = task.path.rpartition("/")[2]
    problems = []
    try:
        for offset, message in _check(task, rows, on_image):
            where = [] if offset is None else [f"offset {offset}"]
            if rows and offset in rows:
                row = rows[offset]
                where += [f"row {row['number']}", row["source_id"]]
            problems.append(Problem(file, ", ".join(where), message))
    except OSError as error:
        problems.append(unreadable(file, error))
    return problems


def _check(
    task: ShardTask, rows: Rows | None, on_image: Callable[[], None]
) -> Iterator[tuple[int | None, str]]:
    """Yields problems with their offset, which is None for a problem of the whole file."""
    offsets = sorted(rows or {})
    seen: set[int] = set()
    is_damaged = False
    with storage.open_read(task.path) as file:
        summed = _SummedFile(file)
        for offset, record in _records(cast(BinaryIO, summed), offsets):
            on_image()
            seen.add(offset)
            if isinstance(record, DamagedRecord):
                is_damaged = True
                yield offset, record.problem
                continue
            for message in _record_problems(record, offset, rows, task.names):
                yield offset, message
    for offset in offsets:
        if offset not in seen:
            yield offset, "no record starts here"
    # Parts of a damaged file are skipped, so its checksum is not known.
    if not is_damaged and task.crc32c not in (None, summed.crc32c):
        yield None, f"its CRC-32C is {summed.crc32c}, in dataset_info.json {task.crc32c}"


def _records(file: BinaryIO, offsets: Sequence[int]) -> Iterator[tuple[int, bytes | DamagedRecord]]:
    """Yields every record; after a damaged one, the offsets of the index say where to continue."""
    while True:
        try:
            yield from read_records(file)
            return
        except DamagedRecord as damage:
            yield damage.offset, damage
            later = bisect.bisect_right(offsets, damage.offset)
            if later == len(offsets):
                return
            file.seek(offsets[later])


def _record_problems(
    payload: bytes, offset: int, rows: Rows | None, names: Mapping[int, str]
) -> Iterator[str]:
    """Yields what is wrong with a record; `names` as in `ShardTask`."""
    try:
        features: dict[str, Any] = dict(decode_example(payload))
    except ValueError as error:
        yield str(error)
        return
    wrong = _TYPES.items() ^ {name: type(value) for name, value in features.items()}.items()
    if wrong:
        yield f"missing, unknown or of a wrong type: {', '.join(sorted(dict(wrong)))}"
        return
    for name in ("image/class/text", "image/format", "image/source_id"):
        features[name] = features[name].decode("utf-8", "backslashreplace")
    if rows is not None and offset not in rows:
        yield f"record of {features['image/source_id']} without a row in the index"
    elif rows is not None:
        in_shard = {name: features[feature] for name, feature in _IN_BOTH.items()}
        for name, value in {"length": len(payload), **in_shard}.items():
            expected = rows[offset][name]
            if value != expected:
                yield f"{name} is {_shown(expected)} in the index, {_shown(value)} in the shard"
    yield from _image_problems(features)
    label, text = features["image/class/label"], features["image/class/text"]
    if text != names.get(label, text):
        yield f"class {text!r} here, label {label} is {names[label]!r} in classes.parquet"


def _shown(value: Any) -> str:
    return f"{value.hex()[:16]}..." if isinstance(value, bytes) else str(value)


def _image_problems(features: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the image of a record."""
    jpeg, size = features["image/encoded"], (features["image/height"], features["image/width"])
    if features["image/format"] != "jpeg":
        yield f"image/format is {features['image/format']!r}"
    if hashlib.sha256(jpeg).digest() != features["image/key/sha256"]:
        yield "image/key/sha256 is not the hash of the image"
    try:
        # Image.open limits the size, and it takes some JPEGs for other formats.
        with JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg)) as image:
            image.load()
    except Exception as error:  # damaged data can raise almost any exception
        yield f"the image does not decode: {error}"
        return
    if image.mode != "RGB":
        yield f"the image is {image.mode}, not RGB"
    if (image.height, image.width) != size:
        yield f"the image is {image.height} x {image.width}, in the record {size[0]} x {size[1]}"


class _SummedFile:
    """A file that computes the CRC-32C of all bytes that are read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.crc32c = 0
        self.seek, self.seekable, self.tell = file.seek, file.seekable, file.tell
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.crc32c = google_crc32c.extend(self.crc32c, data)
        return data
