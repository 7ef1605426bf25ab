"""Lists and reads images in TFRecord files of tf.Example records, whoever wrote them."""

import contextlib
import dataclasses
import fnmatch
import hashlib
import io
import itertools
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from preprocessing.sources.record_features import RecordFeatures
from preprocessing.sources.references import ImageRef, Rejected, Source, printable, shortened
from tripletmill.errors import UsageError
from tripletmill.formats.records import DamagedRecord, read_record, read_records
from tripletmill.images import BadImage
from tripletmill.storage import storage

WILDCARDS = frozenset("*?[")
OFFSET_DIGITS = 12  # with leading zeros, source ids sort in the order of the records
RECORDS_CHECKED = 20  # before a job starts
COMPRESSED = "compressed with "
OTHER_FEATURES = 4096  # bytes; the features beside the image are seldom larger


@dataclasses.dataclass(frozen=True)
class RecordsInput:
    """The features of a tf.Example that are read. Each must hold one value.

    Attributes:
      image: the feature with the bytes of an image file.
      label: the feature with the class, as text or as an integer.
      label_names: a text file with the names of the classes 0, 1, ..., one per line.
      source_id: the feature with a name that no other image has. By default, the name is made of
        the record's file and offset.
      split: the feature with the image's split. It may be empty or missing.
      columns: features with text or numbers, which are carried into the index as text. They may be
        missing.
      group: the feature that says which images belong together (camera, visit, item). It is carried
        into the index like `columns`.
    """

    image: str = "image/encoded"
    label: str = "image/class/text"
    label_names: str | None = None
    source_id: str | None = None
    split: str | None = None
    columns: Sequence[str] = ()
    group: str | None = None

    def __post_init__(self) -> None:
        check_features(self, required=("image", "label"), optional=("source_id", "split", "group"))


def check_features(
    options: Any, *, required: Sequence[str] = (), optional: Sequence[str] = ()
) -> None:
    """Checks the features of RecordsInput or TfdsInput, and adds `group` to `columns`.

    Args:
      options: the options, as they are created.
      required: attributes that must be the name of a feature.
      optional: attributes that may be None, too.

    Raises:
      UsageError: an attribute is not the name of a feature, or `columns` is not a list of different
        names.
    """
    kind = type(options).__name__
    for name in (*required, *optional):
        value = getattr(options, name)
        if not (_is_name(value) or (value is None and name in optional)):
            raise UsageError(f"{kind}.{name} must be the name of a feature, not {value!r}")
    columns, group = options.columns, options.group
    are_names = isinstance(columns, list | tuple) and all(map(_is_name, columns))
    if not are_names or len({*columns}) < len(columns):
        raise UsageError(f"{kind}.columns must be different names of features, not {columns!r}")
    added = () if group is None or group in columns else (group,)
    object.__setattr__(options, "columns", (*columns, *added))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


class RecordsSource(Source):
    """A source whose options say which features of records are read."""

    options: Any

    @property
    def columns(self) -> Sequence[str]:
        return self.options.columns

    @property
    def group(self) -> str | None:
        return self.options.group


@dataclasses.dataclass(frozen=True)
class TFRecordSource(RecordsSource):
    """The images in one or several TFRecord files.

    A source id is FILE@OFFSET, unless a feature holds a better name.

    Attributes:
      path: a file; a folder, in which all files with `tfrecord` in their names are read; or a
        pattern such as photos/train-*.tfrecord. Hidden files are skipped.
      options: the features that are read.
      labelled: whether images without a class are rejected. Otherwise they have the class "".
    """

    path: str
    options: RecordsInput = RecordsInput()
    labelled: bool = True

    @property
    def named_by(self) -> str | None:
        return self.options.source_id

    def check(self) -> None:
        """Raises UsageError if there are no files, or the first file cannot be used.

        The first file cannot be used if it is compressed or its first records lack a feature.
        Later records are not checked.
        """
        options, file = self.options, self.parts()[0]
        if options.label_names is not None:
            read_names(options.label_names)
        features = self._first_features(file)
        label = options.label if self.labelled else None
        for name in (options.image, label, options.source_id, options.split, *self.columns):
            if features and name is not None and name not in features:
                raise UsageError(
                    f"input tfrecord:{self.path}: no feature {name!r} in the first records of"
                    f" {file}, only {shortened(features)}; see RecordsInput"
                )

    def parts(self) -> Sequence[str]:
        """The paths of the files, sorted. Raises UsageError if there are none."""
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
        """Lists every record of one file; see `list_records`."""
        name = printable(posixpath.basename(part))
        return list_records(part, name, self.options, labelled=self.labelled)

    def _first_features(self, file: str) -> list[str]:
        """The names of the features in the first records of a file, sorted."""
        names: set[str] = set()
        with storage.open_read(file) as opened:
            for _, record in itertools.islice(_records(opened), RECORDS_CHECKED):
                if isinstance(record, bytes):
                    with contextlib.suppress(BadImage):
                        names |= RecordFeatures(record).names
                elif record.startswith(COMPRESSED):
                    raise UsageError(f"input tfrecord:{self.path}: {file} is {record}")
        return sorted(names)


def list_records(
    path: str, name: str, options: RecordsInput, *, labelled: bool = True
) -> Iterator[ImageRef | Rejected]:
    """Lists every record of a file in order. An empty file gives nothing.

    After a damaged record, the listing continues with the next record. If the length of the damaged
    record is wrong, the next record cannot be found. Then one Rejected, whose name has the offset
    of the damaged record, stands for the rest of the file.

    Args:
      path: the file.
      name: the first part of the source ids.
      options: the features that are read.
      labelled: whether images without a class are rejected. Otherwise they have the class "".

    Raises:
      OSError: the file cannot be read; see tripletmill.storage.
      UsageError: the file is compressed, or the file `label_names` is missing or wrong.
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
    """Reads the bytes of the image that a record holds.

    Raises:
      BadImage: the record is damaged, or it has changed since it was listed.
      OSError: the file cannot be read; see tripletmill.storage.
    """
    try:
        payload = _read_payload(ref)
    except DamagedRecord as damaged:
        raise BadImage(f"damaged record: {damaged.problem}") from damaged
    image = RecordFeatures(payload).image(ref.feature)
    if ref.md5 not in ("", _md5(image)):
        raise BadImage("the record has changed since it was listed")
    return image


def _read_payload(ref: ImageRef) -> bytes:
    data = storage.read_range(ref.path, ref.offset, ref.size + OTHER_FEATURES)
    try:
        return read_record(io.BytesIO(data), 0)
    except DamagedRecord:
        # Perhaps the record is only longer than the bytes that were read.
        with storage.open_read(ref.path) as file:
            return read_record(file, ref.offset)


def read_names(path: str) -> list[str]:
    """Reads names of classes, one per line, without the white space around them.

    An empty file gives [].

    Raises:
      UsageError: the file does not exist or is not UTF-8, a line has no name, or a name is there
        twice.
    """
    owner = f"names of classes {path}"
    try:
        text = storage.read(path).decode("utf-8-sig").rstrip()
    except FileNotFoundError:
        raise UsageError(f"{owner}: no such file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{owner}: not UTF-8") from None
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        name = line.strip()
        if not name:
            raise UsageError(f"{owner}, line {number}: no name")
        if name in lines:
            raise UsageError(f"{owner}, line {number}: {name} is already in line {lines[name]}")
        lines[name] = number
    return list(lines)


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes | str]]:
    """Yields the offset and the payload of every record, or the reason why it is rejected."""
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
    """Says how a file seems to be compressed, or "" if it does not seem to be."""
    file.seek(0)
    head = file.read(2)
    is_zlib = head[:1] == b"\x78" and int.from_bytes(head, "big") % 31 == 0
    kind = "GZIP" if head == b"\x1f\x8b" else "ZLIB" if is_zlib else ""
    advice = "write it without compression, so that each image can be read on its own"
    return f"{COMPRESSED}{kind}; {advice}" if kind else ""


def _listed(
    record: bytes,
    ref: ImageRef,
    options: RecordsInput,
    names: Sequence[str] | None,
    *,
    labelled: bool,
) -> ImageRef | Rejected:
    """Fills in a reference from its record, or rejects the record."""
    try:
        content = RecordFeatures(record)
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


def _md5(image: bytes) -> str:
    return hashlib.md5(image, usedforsecurity=False).hexdigest()
