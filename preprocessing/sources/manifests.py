"""Lists the images of a manifest: a CSV file with a header, or JSONL with one object per line."""

import dataclasses
import io
import itertools
import os
import posixpath
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from preprocessing.sources.manifest_rows import Row, read_header, read_rows
from preprocessing.sources.references import ImageRef, Rejected, reason_unreadable
from tripletmill.errors import UsageError
from tripletmill.formats.manifest_paths import path_in_manifest
from tripletmill.storage import storage

ROWS_A_PART = 1000
PARTS = 5000  # at most this many parts, however long the manifest is
THREADS = 16  # this many files are asked for their size at the same time


@dataclasses.dataclass(frozen=True)
class ManifestInput:
    """The names of a manifest's columns. All other columns are carried into the index.

    Attributes:
      path: the column with the path of the image file. The path is relative to the manifest's
        folder, absolute, or begins with gs://.
      label: the column with the class. The manifest may lack it if images need no class.
      split: the column with the split. By default it is "split", if there is a column of that name.
      group: the column that says which images belong together (camera, visit, item). It is carried
        into the index.
    """

    path: str = "path"
    label: str = "label"
    split: str | None = None
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """Some consecutive rows of a manifest.

    Attributes:
      offset: the byte offset of the first row in the file.
      length: the number of bytes of all rows.
      line: the number of the first row's first line.
    """

    offset: int
    length: int
    line: int


@dataclasses.dataclass(frozen=True)
class ManifestSource:
    """The images that a manifest names; `open_manifest` makes it.

    A wrong row stops the job before it starts, with a message that names the line. A row is wrong
    if it has no path, no label, bad syntax, or a file that another row has named. A file that is
    missing is rejected, like every file that cannot be read.

    Attributes:
      path: the manifest.
      options: the names of its columns.
      header: the columns of a CSV file, in order; empty for JSONL.
      columns: the names of the columns that are carried into the index.
      split: the column with the split, or None.
      all_parts: the parts that the manifest is cut into.
      version: what tells this version of the manifest from a changed one.
    """

    path: str
    options: ManifestInput
    header: Sequence[str]
    columns: Sequence[str]
    split: str | None
    all_parts: Sequence[Part]
    version: str

    named_by = None

    @property
    def group(self) -> str | None:
        return self.options.group

    def check(self) -> None:
        if not self.all_parts:
            raise UsageError(f"input {self.path}: no rows")

    def parts(self) -> Sequence[Part]:
        return self.all_parts

    def without_parts(self) -> "ManifestSource":
        """A copy that is small to send to a worker, which gets its one part separately."""
        return dataclasses.replace(self, all_parts=())

    def list_part(self, part: Part) -> Iterator[ImageRef | Rejected]:
        if _version(self.path) != self.version:
            raise UsageError(
                f"input {self.path}: has changed since the job was started; run the same command"
                " again"
            )
        with storage.open_read(self.path) as file:
            file.seek(part.offset)
            data = io.BytesIO(file.read(part.length))
        rows = list(read_rows(self.path, data, self.header, line=part.line))
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(self._list_row, rows)

    def _list_row(self, row: Row) -> ImageRef | Rejected:
        name, class_name = _text(row, self.options.path), _text(row, self.options.label)
        path = path_in_manifest(self.path, name)
        source_id = _source_id(self.path, path)
        try:
            info = storage.stat(path)
        except OSError as error:
            return Rejected(source_id, class_name, reason_unreadable(path, error))
        return ImageRef(
            source_id=source_id,
            path=path,
            class_name=class_name,
            size=info.size,
            modified=0 if info.md5 else info.modified,
            split=_text(row, self.split) or None if self.split else None,
            md5=info.md5,
            extra=tuple(row.values.get(name) for name in self.columns),
        )


def open_manifest(path: str, options: ManifestInput, *, labelled: bool = True) -> ManifestSource:
    """Reads a whole manifest, checks every row and cuts the manifest into parts.

    Args:
      path: the manifest.
      options: the names of its columns.
      labelled: whether every image must have a class.

    Raises:
      UsageError: the manifest has no rows, lacks a column, or has a wrong row. The message names
        the line of the first wrong row.
    """
    version = _version(path)
    scan = _Scan(path, options, labelled=labelled)
    # A manifest in a bucket is read in one piece. One request per line would take hours.
    in_bucket = storage.is_bucket(path)
    with io.BytesIO(storage.read(path)) if in_bucket else storage.open_read(path) as file:
        parts = scan.parts(file, read_header(path, file))
    if not scan.columns:
        raise UsageError(f"input {path}: no rows")
    label = options.label if labelled else None
    for column in (options.path, label, options.split, options.group):
        if column is not None and column not in scan.columns:
            raise UsageError(
                f"input {path}: no column {column!r}, only {', '.join(scan.columns)};"
                " see ManifestInput"
            )
    split = options.split or ("split" if "split" in scan.columns else None)
    used = {options.path, options.label, split}
    return ManifestSource(
        path=path,
        options=options,
        header=scan.header,
        columns=tuple(name for name in scan.columns if name not in used),
        split=split,
        all_parts=parts,
        version=version,
    )


def _version(path: str) -> str:
    info = storage.stat(path)
    return f"{info.size} {info.md5 or info.modified}"


class _Scan:
    """One pass over all rows of a manifest.

    Attributes:
      header: the columns of a CSV file, in order; empty for JSONL.
      columns: all columns, as keys, in the order in which they first appear.
    """

    def __init__(self, path: str, options: ManifestInput, *, labelled: bool) -> None:
        self.path, self.options, self.labelled = path, options, labelled
        self.required = {options.path, options.label} if labelled else {options.path}
        self.header: tuple[str, ...] = ()
        self.columns: dict[str, None] = {}

    def parts(self, file: BinaryIO, header: tuple[str, ...]) -> list[Part]:
        """Checks all rows after the header and cuts them into parts."""
        self.header = header
        self.columns = dict.fromkeys(header)
        start = file.tell()
        # For each row, these arrays hold where it ends, its line, and a hash of its source id.
        ends, lines, hashes = array("q"), array("q"), array("q")
        for row in self._rows(file):
            self.columns.update(dict.fromkeys(row.values))
            if not ends and not self.required <= {*row.values}:
                break  # a column has another name; open_manifest says which
            hashes.append(hash(self._checked_source_id(row)))
            ends.append(row.end)
            lines.append(row.line)
        _, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
        if (counts > 1).any():
            file.seek(start)
            self._check_unique(file)
        step = max(ROWS_A_PART, -(-len(ends) // PARTS))
        last_rows = [*range(step - 1, len(ends) - 1, step), *range(len(ends))[-1:]]
        edges = [(start, 1 if header else 0), *((ends[row], lines[row]) for row in last_rows)]
        return [
            Part(offset=offset, length=end - offset, line=line + 1)
            for (offset, line), (end, _) in itertools.pairwise(edges)
        ]

    def _rows(self, file: BinaryIO) -> Iterator[Row]:
        return read_rows(self.path, file, self.header, line=2 if self.header else 1)

    def _checked_source_id(self, row: Row) -> str:
        where = f"input {self.path}, line {row.line}"
        for column, value in row.values.items():
            if not _is_plain(column + (value or "")):
                raise UsageError(f"{where}: {column!r} has characters that are not text")
        name = _text(row, self.options.path)
        if not name:
            raise UsageError(f"{where}: no {self.options.path}")
        if self.labelled and not _text(row, self.options.label):
            raise UsageError(f"{where}: no {self.options.label} for {name}")
        return _source_id(self.path, path_in_manifest(self.path, name))

    def _check_unique(self, file: BinaryIO) -> None:
        lines: dict[str, int] = {}
        for row in self._rows(file):
            source_id = self._checked_source_id(row)
            if source_id in lines:
                raise UsageError(
                    f"input {self.path}, line {row.line}: {source_id} is already in line"
                    f" {lines[source_id]}"
                )
            lines[source_id] = row.line


def _is_plain(text: str) -> bool:
    """Whether a text can be a file name and be written: no NUL, no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _text(row: Row, column: str) -> str:
    return (row.values.get(column) or "").strip()


def _source_id(manifest: str, path: str) -> str:
    folder = posixpath.dirname(manifest)
    if storage.is_bucket(path):
        return path.removeprefix(f"{folder}/")
    return os.path.relpath(path, folder).replace(os.sep, "/")
