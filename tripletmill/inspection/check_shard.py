"""Reads one shard, checks its checksums, and compares each record with its row of the index."""

import bisect
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import google_crc32c
from PIL import JpegImagePlugin

from tripletmill.formats import tfds_layout
from tripletmill.formats.records import DamagedRecord, decode_example, read_records
from tripletmill.inspection.problem import Problem
from tripletmill.storage import storage

_FEATURES = frozenset(tfds_layout.features_json()["content"]["features"])
_NUMBERS = ("image/class/label", "image/height", "image/width")
# Columns of the index, and the features of a record that must be equal to them.
_IN_BOTH = {
    "label": "image/class/label",
    "height": "image/height",
    "width": "image/width",
    "source_id": "image/source_id",
    "sha256": "image/key/sha256",
}


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard to be read.

    Attributes:
      path: path of the file.
      size: bytes of the file; None where it is missing.
      rows: the shard's rows of the index, each with its "number" in the index file; None where
        they cannot be read.
      names: class names of the split by label, as far as they are known.
      crc32c: checksum of the whole file; None where dataset_info.json has none.
    """

    path: str
    size: int | None
    rows: Sequence[Mapping[str, Any]] | None
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
    check = _ShardCheck(task)
    check.run(on_image)
    return check.problems


class _ShardCheck:
    def __init__(self, task: ShardTask) -> None:
        self.task = task
        self.problems: list[Problem] = []
        self._rows = task.rows or ()
        self._row_at = {row["offset"]: i for i, row in enumerate(self._rows)}
        self._seen: set[int] = set()  # offsets of records, whole or damaged
        self._is_damaged = False
        self._label: int | None = None  # of the previous record
        self._labels: set[int] = set()

    def run(self, on_image: Callable[[], None]) -> None:
        if self.task.size is None:
            self._report(f"missing, with {len(self._rows):,} images")
            return
        try:
            with storage.open_read(self.task.path) as file:
                summed = _SummedFile(file)
                for offset, payload in self._records(summed):
                    on_image()
                    self._seen.add(offset)
                    self._check_record(offset, payload)
        except OSError as error:
            self._report(f"cannot be read: {error.strerror or error}")
            return
        self._check_rows()
        # Parts of a damaged file are skipped, so its checksum is not known.
        if not self._is_damaged and self.task.crc32c not in (None, summed.crc32c):
            message = f"its CRC-32C is {summed.crc32c}, in dataset_info.json {self.task.crc32c}"
            self._report(message)

    def _report(self, message: str, offset: int | None = None, row: int | None = None) -> None:
        where = [] if offset is None else [f"offset {offset}"]
        if row is None and offset is not None:
            row = self._row_at.get(offset)
        if row is not None:
            where += [f"row {self._rows[row]['number']}", self._rows[row]["source_id"]]
        file = self.task.path.rpartition("/")[2]
        self.problems.append(Problem(file, ", ".join(where), message))

    def _records(self, file: "_SummedFile") -> Iterator[tuple[int, bytes]]:
        """Every record that can be read; after a damaged one the index says where to continue."""
        offsets = sorted(self._row_at)
        while True:
            try:
                yield from read_records(cast(BinaryIO, file))
                return
            except DamagedRecord as damage:
                self._is_damaged = True
                self._seen.add(damage.offset)
                unknown = "; without the index, the rest of the file cannot be checked"
                problem = damage.problem + (unknown if self.task.rows is None else "")
                self._report(problem, damage.offset)
                later = bisect.bisect_right(offsets, damage.offset)
                if later == len(offsets):
                    return
                file.seek(offsets[later])

    def _check_rows(self) -> None:
        """Reports rows without a record, and rows that are not in file order."""
        before = -1
        for i, row in enumerate(self._rows):
            offset = row["offset"]
            if offset not in self._seen:
                self._report("no record starts here", offset, i)
            if offset <= before:
                message = f"comes in the index after the row of offset {before}: not in file order"
                self._report(message, offset, i)
            before = offset

    def _check_record(self, offset: int, payload: bytes) -> None:
        try:
            features = _features(payload)
        except ValueError as error:
            self._report(str(error), offset)
            return
        if offset in self._row_at:
            in_shard = {"length": len(payload)}
            in_shard |= {name: features[feature] for name, feature in _IN_BOTH.items()}
            row = self._rows[self._row_at[offset]]
            for name, value in in_shard.items():
                if value != row[name]:
                    expected = _shown(row[name])
                    message = f"{name} is {expected} in the index, {_shown(value)} in the shard"
                    self._report(message, offset)
        elif self.task.rows is not None:
            message = f"record of {features['image/source_id']} without a row in the index"
            self._report(message, offset)
        for message in _image_problems(features):
            self._report(message, offset)
        label, text = features["image/class/label"], features["image/class/text"]
        name = self.task.names.get(label, text)
        if text != name:
            message = f"class {text!r} here, label {label} is {name!r} in classes.parquet"
            self._report(message, offset)
        if label != self._label and label in self._labels:
            message = f"more images of label {label}: the class is not in one piece"
            self._report(message, offset)
        self._label = label
        self._labels.add(label)


def _shown(value: Any) -> str:
    return f"{value.hex()[:16]}..." if isinstance(value, bytes) else str(value)


def _features(payload: bytes) -> dict[str, Any]:
    """Decodes the features of a record, text as str; raises ValueError unless all are right."""
    features: dict[str, Any] = dict(decode_example(payload))
    if missing := _FEATURES - features.keys():
        raise ValueError(f"without {', '.join(sorted(missing))}")
    if unknown := features.keys() - _FEATURES:
        raise ValueError(f"with {', '.join(sorted(unknown))}")
    for name, value in features.items():
        if isinstance(value, int) != (name in _NUMBERS):
            raise ValueError(f"{name} is {type(value).__name__}")
    for name in ("image/class/text", "image/format", "image/source_id"):
        features[name] = features[name].decode("utf-8", "backslashreplace")
    return features


def _image_problems(features: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the image of a record."""
    jpeg = features["image/encoded"]
    if features["image/format"] != "jpeg":
        yield f"image/format is {features['image/format']!r}"
    if hashlib.sha256(jpeg).digest() != features["image/key/sha256"]:
        yield "image/key/sha256 is not the hash of the image"
    try:
        # Image.open limits the size, and it takes some JPEGs for other formats.
        with JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg)) as image:
            image.load()
            mode, (width, height) = image.mode, image.size
    except Exception as error:  # damaged data can raise almost any exception
        yield f"the image does not decode: {error}"
        return
    if mode != "RGB":
        yield f"the image is {mode}, not RGB"
    if (height, width) != (features["image/height"], features["image/width"]):
        said = f"{features['image/height']} x {features['image/width']}"
        yield f"the image is {height} x {width}, in the record {said}"


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
