"""Images in TFRecord files of tf.Example records, whoever wrote them."""

import contextlib
import dataclasses
import fnmatch
import hashlib
import io
import itertools
import posixpath
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from preprocessing.sources.references import ImageRef, Rejected, printable
from tripletmill.errors import UsageError
from tripletmill.formats.records import DamagedRecord, example_features, read_record, read_records
from tripletmill.images import BadImage
from tripletmill.storage import storage

WILDCARDS = frozenset("*?[")
OFFSET_DIGITS = 12  # so that names sort as records lie in a file
RECORDS_LOOKED_AT = 20  # before a job starts
NO_CLASS = -1  # by custom, of an image that nobody has labelled
COMPRESSED = "compressed with "
OTHER_FEATURES = 4096  # bytes that those beside the image seldom exceed


@dataclasses.dataclass(frozen=True)
class RecordsInput:
    """Which features of a tf.Example are read; each holds one value.

    Attributes:
      image: the bytes of an image file.
      label: the class, text or an integer.
      label_names: a text file with the names of the classes 0, 1, ..., a line each.
      source_id: a name that no other image has; by default the record's file and offset.
      split: the split that the image asks for; it may be empty or missing.
      columns: text or numbers that are carried into the index as text; they may be missing.
      group: what tells images that belong together (camera, visit, item); carried like `columns`.
    """

    image: str = "image/encoded"
    label: str = "image/class/text"
    label_names: str | None = None
    source_id: str | None = None
    split: str | None = None
    columns: Sequence[str] = ()
    group: str | None = None

    def __post_init__(self) -> None:
        check_features(self, "image", "label")
        check_features(self, "source_id", "split", "group", optional=True)
        object.__setattr__(self, "columns", checked_columns(self))


def check_features(options: Any, *names: str, optional: bool = False) -> None:
    """Raises UsageError for options that are no name of a feature, nor None where that may be."""
    for name in names:
        value = getattr(options, name)
        if not (isinstance(value, str) and value) and not (value is None and optional):
            raise UsageError(
                f"{type(options).__name__}.{name}: the name of a feature, not {value!r}"
            )


def checked_columns(options: Any) -> tuple[str, ...]:
    """`columns` of the options, with `group`; raises UsageError if they are no list of names."""
    columns, group = options.columns, options.group
    names = isinstance(columns, list | tuple) and all(isinstance(c, str) and c for c in columns)
    if not names or len({*columns}) < len(columns):
        raise UsageError(
            f"{type(options).__name__}.columns: names of features, each once, not {columns!r}"
        )
    return (*columns, group) if group is not None and group not in columns else tuple(columns)


@dataclasses.dataclass(frozen=True)
class TFRecordSource:
    """Records in the files that a path stands for.

    The path is one file, a folder, of which all files with `tfrecord` in their names are meant, or
    a pattern such as photos/train-*.tfrecord. Hidden files are passed over. A source id is
    FILE@OFFSET, unless a feature holds a better name.
    """

    path: str
    options: RecordsInput = RecordsInput()
    labelled: bool = True  # whether an image without a class is left out

    @property
    def columns(self) -> Sequence[str]:
        return self.options.columns

    @property
    def group(self) -> str | None:
        return self.options.group

    @property
    def named_by(self) -> str | None:
        return self.options.source_id

    def check(self) -> None:
        """Raises UsageError: no files, or the first is compressed or lacks what is to be read.

        Features are looked for in a few records only, so that one in thousands may be missed.
        """
        options, file = self.options, self.parts()[0]
        if options.label_names is not None:
            read_names(options.label_names)
        found = self._first_features(file)
        label = options.label if self.labelled else None
        for name in (options.image, label, options.source_id, options.split, *self.columns):
            if found and name is not None and name not in found:
                raise UsageError(
                    f"input tfrecord:{self.path}: no feature {name!r} in the first records of"
                    f" {file}, only {listing(found)}; see RecordsInput"
                )

    def parts(self) -> Sequence[str]:
        """Paths of the files, sorted. Raises UsageError where there are none."""
        folder, slash, pattern = self.path.rpartition("/")
        problem = "no such file or folder"
        if storage.is_folder(self.path):
            folder, slash, pattern = self.path, "", "*tfrecord*"
            problem = "no files in it with tfrecord in their names"
        elif storage.is_file(self.path):
            return [self.path]
        elif WILDCARDS & {*folder}:
            problem = "wildcards are for names of files, not of folders"
        elif WILDCARDS & {*pattern}:
            problem = "no files match"
        files = [
            info.path
            for info in storage.list_files(folder + slash or ".")
            if fnmatch.fnmatchcase(name := posixpath.basename(info.path), pattern)
            and not name.startswith(".")
        ]
        if not files:
            raise UsageError(f"input tfrecord:{self.path}: {problem}")
        return files

    def list_part(self, part: str) -> Iterator[ImageRef | Rejected]:
        """Every record of one file; as list_records."""
        name = printable(posixpath.basename(part))
        return list_records(part, name, self.options, labelled=self.labelled)

    def _first_features(self, file: str) -> list[str]:
        found: set[str] = set()
        with storage.open_read(file) as opened:
            for _, record in itertools.islice(_records(opened), RECORDS_LOOKED_AT):
                if isinstance(record, bytes):
                    with contextlib.suppress(BadImage):
                        found |= _Record(record).features.keys()
                elif record.startswith(COMPRESSED):
                    raise UsageError(f"input tfrecord:{self.path}: {file} is {record}")
        return sorted(found)


def list_records(
    path: str, name: str, options: RecordsInput, *, labelled: bool = True
) -> Iterator[ImageRef | Rejected]:
    """Every record of a file, in order; nothing of an empty file.

    After a damaged record the listing goes on, unless its length is lost: what follows cannot be
    found then, and one Rejected, named after the offset, stands for all of it.

    Args:
      path: where the file lies.
      name: what source ids begin with.
      options: which features are read.
      labelled: whether an image without a class is left out, or has the class "".

    Raises:
      OSError: as tripletmill.storage.
      UsageError: the file is compressed, or that of `label_names` is missing or wrong.
    """
    names = None if options.label_names is None else read_names(options.label_names)
    with storage.open_read(path) as file:
        for offset, record in _records(file):
            source_id = f"{name}@{offset:0{OFFSET_DIGITS}}"
            if isinstance(record, bytes):
                ref = ImageRef(source_id, path, "", 0, offset=offset, feature=options.image)
                yield _listed(record, ref, options, names, labelled=labelled)
            elif record.startswith(COMPRESSED):
                raise UsageError(f"{path} is {record}")
            else:
                yield Rejected(source_id, "", record)


def read_image(ref: ImageRef) -> bytes:
    """The bytes of the image that a record holds.

    Raises:
      BadImage: the record is damaged, or not the one that was listed.
      OSError: as tripletmill.storage.
    """
    try:
        payload = _read_payload(ref)
    except DamagedRecord as damaged:
        raise BadImage(f"damaged record: {damaged.problem}") from damaged
    image = _Record(payload).image(ref.feature)
    if ref.md5 not in ("", _md5(image)):
        raise BadImage("the record has changed since it was listed")
    return image


def _read_payload(ref: ImageRef) -> bytes:
    data = storage.read_range(ref.path, ref.offset, ref.size + OTHER_FEATURES)
    try:
        return read_record(io.BytesIO(data), 0)
    except DamagedRecord:
        # Perhaps only longer than that.
        with storage.open_read(ref.path) as file:
            return read_record(file, ref.offset)


def read_names(path: str) -> list[str]:
    """Names of classes, a line each, without white space around them; [] for an empty file.

    Raises UsageError: no such file, not UTF-8, a line without a name, a name for the second time.
    """
    what = f"names of classes {path}"
    try:
        text = storage.read(path).decode("utf-8-sig").rstrip()
    except FileNotFoundError:
        raise UsageError(f"{what}: no such file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{what}: not UTF-8") from None
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        name = line.strip()
        if not name:
            raise UsageError(f"{what}, line {number}: no name")
        if name in lines:
            raise UsageError(f"{what}, line {number}: {name} stands in line {lines[name]} already")
        lines[name] = number
    return list(lines)


def listing(names: Sequence[str]) -> str:
    """Names in one line that is not too long."""
    return textwrap.shorten(", ".join(names), 200, placeholder=" ...")


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes | str]]:
    """Offset and payload of every record, or the reason why it is left out."""
    while True:
        try:
            yield from read_records(file)
            return
        except DamagedRecord as damaged:
            reason = f"damaged record: {damaged.problem}"
            if damaged.next_offset is not None:
                yield damaged.offset, reason
                continue
            reason += "; the rest of the file from here on is left out"
            yield damaged.offset, (damaged.offset == 0 and _compression(file)) or reason
            return


def _compression(file: BinaryIO) -> str:
    """How a file seems to be compressed, "" if it does not."""
    file.seek(0)
    head = file.read(2)
    if head == b"\x1f\x8b":
        return f"{COMPRESSED}GZIP; write it without, so that an image can be read on its own"
    if head[:1] == b"\x78" and int.from_bytes(head, "big") % 31 == 0:
        return f"{COMPRESSED}ZLIB; write it without, so that an image can be read on its own"
    return ""


def _listed(
    record: bytes,
    ref: ImageRef,
    options: RecordsInput,
    names: Sequence[str] | None,
    *,
    labelled: bool,
) -> ImageRef | Rejected:
    """The reference, filled in from its record."""
    try:
        content = _Record(record)
        if options.source_id is not None:
            ref = dataclasses.replace(ref, source_id=content.required(options.source_id))
        if labelled or content.has_class(options.label):
            ref = dataclasses.replace(ref, class_name=content.class_name(options.label, names))
        image = content.image(options.image)
        return dataclasses.replace(
            ref,
            size=len(image),
            split=content.text(options.split) or None if options.split else None,
            md5=_md5(image),
            extra=tuple(content.text(name) for name in options.columns),
        )
    except BadImage as bad:
        return Rejected(ref.source_id, ref.class_name, bad.reason)


class _Record:
    """What a tf.Example holds; BadImage where that is not what it has to be."""

    def __init__(self, payload: bytes) -> None:
        try:
            self.features = example_features(payload)
        except ValueError as error:
            raise BadImage(str(error)) from error

    def image(self, name: str) -> bytes:
        self._require(name)
        image = self._value(name)
        if image is None:
            raise BadImage(f"feature {name!r} is empty")
        if not isinstance(image, bytes):
            raise BadImage(f"feature {name!r} is a number, not the bytes of an image file")
        return image

    def has_class(self, name: str) -> bool:
        return bool((self.text(name) or "").strip()) and self._value(name) != NO_CLASS

    def class_name(self, name: str, names: Sequence[str] | None) -> str:
        text, label = self.required(name), self._value(name)
        if isinstance(label, float):
            raise BadImage(f"feature {name!r} is a float, not a class")
        if label == NO_CLASS:
            raise BadImage(f"feature {name!r} is {NO_CLASS}, which means no class")
        if isinstance(label, bytes) or names is None:
            return text
        if not 0 <= label < len(names):
            raise BadImage(f"feature {name!r} is a number without a name")
        return names[label]

    def required(self, name: str) -> str:
        self._require(name)
        text = self.text(name)
        if text is None or not text.strip():
            raise BadImage(f"feature {name!r} is empty")
        return text

    def text(self, name: str) -> str | None:
        value = self._value(name)
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise BadImage(f"feature {name!r} is not text in UTF-8") from None
        if isinstance(value, float):
            return str(np.float32(value))  # 0.1, not 0.10000000149
        return None if value is None else str(value)

    def _value(self, name: str) -> Any:
        values = self.features.get(name, [])
        if len(values) > 1:
            raise BadImage(f"feature {name!r} has several values")
        return values[0] if values else None

    def _require(self, name: str) -> None:
        if name not in self.features:
            there = f"there are: {listing([*self.features])}" if self.features else "there are none"
            raise BadImage(f"no feature {name!r}; {there}")


def _md5(image: bytes) -> str:
    return hashlib.md5(image, usedforsecurity=False).hexdigest()
