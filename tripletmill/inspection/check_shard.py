"""One shard read back: framing, checksums, and every record against its row of the index."""

import bisect
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import google_crc32c
import numpy as np
from PIL import JpegImagePlugin

from tripletmill.formats import tfds_layout
from tripletmill.formats.records import FRAMING_BYTES, DamagedRecord, decode_example, read_records
from tripletmill.inspection.problem import Problem
from tripletmill.storage import storage

_FEATURES = frozenset(tfds_layout.features_json()["content"]["features"])
_NUMBERS = ("image/class/label", "image/height", "image/width")
# What the index and the record both say of an image.
_IN_BOTH = {
    "label": "image/class/label",
    "height": "image/height",
    "width": "image/width",
    "source_id": "image/source_id",
    "sha256": "image/key/sha256",
}


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard to be read back.

    Attributes:
      path: of the file.
      size: its bytes; None where it is missing.
      rows: of the index; None where they cannot be read.
      numbers: [rows] places of the rows in the index file.
      names: class names of the split by label; None where they are not known.
      crc32c: of the whole file, if it is known.
    """

    path: str
    size: int | None
    rows: Sequence[Mapping[str, Any]] | None
    numbers: np.ndarray
    names: Mapping[int, str] | None
    crc32c: int | None


@dataclasses.dataclass
class ShardCheck:
    """What was found.

    Attributes:
      problems: causes, not their consequences: a damaged record is named, and not also the
        checksum of its file.
      suspects: labels whose images are not counted right, for one of these causes.
      source_ids: [rows] hashes of the source ids in the index; 0 where the shard has no such one.
    """

    problems: list[Problem]
    suspects: set[int]
    source_ids: np.ndarray


def check_shard(task: ShardTask, on_image: Callable[[], None] = lambda: None) -> ShardCheck:
    """Reads a shard once, in order, one record in memory; goes on behind a damaged one.

    `on_image` is called for each record; what it raises ends the check.
    """
    check = _Check(task)
    check.run(on_image)
    return ShardCheck(check.problems, check.suspects, check.source_ids)


def source_id_hash(source_id: str) -> int:
    """64 bits, above 0."""
    data = source_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1


class _Check:
    def __init__(self, task: ShardTask) -> None:
        self.task = task
        self.rows = task.rows or ()
        self.problems: list[Problem] = []
        self.suspects: set[int] = set()
        self.source_ids = np.array([source_id_hash(r["source_id"]) for r in self.rows], np.uint64)
        self._file = task.path.rpartition("/")[2]
        # The first row of an offset, the last of a source id; others of the same are odd anyway.
        self._at = {row["offset"]: i for i, row in reversed([*enumerate(self.rows)])}
        self._of = {row["source_id"]: i for i, row in enumerate(self.rows)}
        self._offsets = sorted(self._at)
        self._open = set(range(len(self.rows)))  # rows whose record has not come by
        self._in_place: set[int] = set()  # rows whose record, whole or not, is at their offset
        self._label: int | None = None  # of the record before
        self._labels: set[int] = set()
        self._names: set[tuple[int, str]] = set()  # labels and names seen

    def run(self, on_image: Callable[[], None]) -> None:
        if self.task.size is None:
            self._report("missing file", f"missing, with {len(self.rows):,} images")
            return
        try:
            with storage.open_read(self.task.path) as file:
                summed = _Summed(file)
                for offset, payload in self._records(summed):
                    on_image()
                    self._check_record(offset, payload)
        except OSError as error:
            self._report("unreadable file", f"cannot be read: {error.strerror or error}")
            return
        self._check_open_rows(self.task.size)
        self._check_order()
        if not self.problems and self.task.crc32c not in (None, summed.crc32c):
            self._report(
                "checksum of a file",
                f"its CRC-32C is {summed.crc32c}, in dataset_info.json {self.task.crc32c}",
            )

    def _report(
        self, kind: str, what: str, *, offset: int | None = None, row: int | None = None
    ) -> None:
        where = [] if offset is None else [f"offset {offset}"]
        if row is not None:
            where += [f"row {self.task.numbers[row]}", self.rows[row]["source_id"]]
        self.problems.append(Problem(self._file, ", ".join(where), what, kind))

    def _check_order(self) -> None:
        before = -1
        for i in sorted(self._in_place):
            offset = self._offset(i)
            if offset < before:
                what = f"comes in the index after the row of offset {before}: not in file order"
                self._report("order of the index", what, offset=offset, row=i)
            before = offset

    def _records(self, file: "_Summed") -> Iterator[tuple[int, bytes]]:
        """Every record that can be read; behind a damaged one the index says where to go on."""
        while True:
            try:
                yield from read_records(cast(BinaryIO, file))
                return
            except DamagedRecord as damage:
                self._check_damage(damage)
                later = bisect.bisect_right(self._offsets, damage.offset)
                if later == len(self._offsets):
                    return
                file.seek(self._offsets[later])

    def _check_damage(self, damage: DamagedRecord) -> None:
        row = self._at.get(damage.offset)
        if row is not None and self._end(row) > (self.task.size or 0):
            return  # of a file that was cut off, which _check_open_rows says
        what = damage.problem
        if self.task.rows is None:
            what += "; what follows cannot be found without the index"
        self._report("damaged record", what, offset=damage.offset, row=row)
        self._close(row)

    def _close(self, row: int | None) -> None:
        """Notes that there is something at the row's offset."""
        if row is not None:
            self._open.discard(row)
            self._in_place.add(row)

    def _offset(self, row: int) -> int:
        return self.rows[row]["offset"]

    def _end(self, row: int) -> int:
        return self._offset(row) + self.rows[row]["length"] + FRAMING_BYTES

    def _check_open_rows(self, size: int) -> None:
        # In the order of the file, an offset's first row first.
        open_rows = sorted(self._open, key=lambda i: (self._offset(i), i))
        lost = [i for i in open_rows if self._end(i) > size]
        if lost:
            what = (
                f"the file ends after {size:,} bytes, {self._end(lost[-1]) - size:,} too early;"
                f" images that are lost: {len(lost):,}"
            )
            self._report("file cut off", what, offset=self._offset(lost[0]), row=lost[0])
        for i in sorted(self._open.difference(lost)):
            first = self._at[self._offset(i)]
            twice = f"row {self.task.numbers[first]} of the index has the same offset"
            what = "no record starts here" if first == i else twice
            self._report("row without a record", what, offset=self._offset(i), row=i)
            self.suspects.add(self.rows[i]["label"])
            self.source_ids[i] = 0

    def _check_record(self, offset: int, payload: bytes) -> None:
        row = self._at.get(offset)
        try:
            features = _features(payload)
        except ValueError as error:
            self._report("no image record", str(error), offset=offset, row=row)
            self._close(row)
            return
        label, source_id = features["image/class/label"], features["image/source_id"]
        self._close(row)
        if row is None and self._of.get(source_id) in self._open:
            row = self._of[source_id]
            self._open.remove(row)
            what = f"the index has it at offset {self._offset(row)}"
            self._report("offset differs", what, offset=offset, row=row)
        agrees = True
        if row is not None:
            agrees = self._check_row(offset, row, len(payload), features)
        elif self.task.rows is not None:
            what = f"record of {source_id} without a row in the index"
            self._report("record without a row", what, offset=offset)
            self.suspects.add(label)
        for kind, what in _image_problems(features):
            self._report(kind, what, offset=offset, row=row)
        if agrees:
            self._check_class(offset, row, label, features["image/class/text"])

    def _check_row(self, offset: int, row: int, length: int, features: Mapping[str, Any]) -> bool:
        """Whether label and row agree; reports what does not."""
        found = {name: features[feature] for name, feature in _IN_BOTH.items()}
        for name, value in {"length": length, **found}.items():
            expected = self.rows[row][name]
            if value != expected:
                what = f"{name} is {_shown(expected)} in the index, {_shown(value)} in the shard"
                self._report(f"{name} differs", what, offset=offset, row=row)
        if self.rows[row]["source_id"] != found["source_id"]:
            self.source_ids[row] = 0
        if self.rows[row]["label"] != found["label"]:
            self.suspects |= {self.rows[row]["label"], found["label"]}
            return False
        return True

    def _check_class(self, offset: int, row: int | None, label: int, text: str) -> None:
        if (label, text) not in self._names:
            self._names.add((label, text))
            name = (self.task.names or {}).get(label, text)
            if text != name:
                what = f"class {text!r} here, label {label} is {name!r} in classes.parquet"
                self._report("class name differs", what, offset=offset, row=row)
        if label != self._label and label in self._labels:
            what = f"more images of label {label}: the class is not in one piece"
            self._report("class in pieces", what, offset=offset, row=row)
        self._label = label
        self._labels.add(label)


def _shown(value: Any) -> str:
    return f"{value.hex()[:16]}..." if isinstance(value, bytes) else str(value)


def _features(payload: bytes) -> dict[str, Any]:
    """Features of a record, text as str; raises ValueError where they are not those of an image."""
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


def _image_problems(features: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Kind and text of whatever is wrong with the image itself."""
    jpeg = features["image/encoded"]
    if features["image/format"] != "jpeg":
        yield "image format", f"image/format is {features['image/format']!r}"
    if hashlib.sha256(jpeg).digest() != features["image/key/sha256"]:
        yield "hash of an image", "image/key/sha256 is not the hash of the image"
    try:
        # Not Image.open: that has a limit of its own, and takes some JPEGs for other formats.
        with JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg)) as image:
            image.load()
            mode, (width, height) = image.mode, image.size
    except Exception as error:  # on damaged data nearly everything happens
        yield "image that does not decode", f"the image does not decode: {error}"
        return
    if mode != "RGB":
        yield "image mode", f"the image is {mode}, not RGB"
    if (height, width) != (features["image/height"], features["image/width"]):
        said = f"{features['image/height']} x {features['image/width']}"
        yield "size of an image", f"the image is {height} x {width}, in the record {said}"


class _Summed:
    """Passes reads on and sums them; the sum is of the whole file where nobody seeks."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.crc32c = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.crc32c = google_crc32c.extend(self.crc32c, data)
        return data

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()
