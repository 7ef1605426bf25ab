"""A list of images: a CSV file with a header, or a JSONL file with an object a line."""

import csv
import dataclasses
import io
import itertools
import json
import os
import posixpath
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from preprocessing.sources.references import ImageRef, Rejected
from tripletmill.errors import UsageError
from tripletmill.formats.manifest_paths import path_in_manifest
from tripletmill.storage import storage

ROWS_A_PART = 1000
PARTS = 5000  # at most about so many, however long the list is
LOOKING = 16  # files whose size is asked for at once
Row = Mapping[str, str | None]


@dataclasses.dataclass(frozen=True)
class ManifestInput:
    """How the columns of a list are called; all others are carried into the index.

    Attributes:
      path: the file, relative to the list's folder, or absolute, or gs://.
      label: the class; where images need none, a list may lack the column.
      split: the split; by default "split", if there is such a column.
      group: what tells images that belong together (camera, visit, item); carried like the others.
    """

    path: str = "path"
    label: str = "label"
    split: str | None = None
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of a list: where in the file they lie, and the number of their first line."""

    offset: int
    length: int
    line: int


@dataclasses.dataclass(frozen=True)
class ManifestSource:
    """The images that a list names, each once.

    A row that is wrong (no path, no label, bad syntax, a file for the second time) stops the job at
    its start, with its line; a file that is not there is rejected like any that cannot be read.
    """

    path: str
    options: ManifestInput
    header: Sequence[str]
    columns: Sequence[str]
    split: str | None
    found: Sequence[Part]
    version: str

    named_by = None

    @property
    def group(self) -> str | None:
        return self.options.group

    def check(self) -> None:
        if not self.found:
            raise UsageError(f"input {self.path}: no rows")

    def parts(self) -> Sequence[Part]:
        return self.found

    def without_parts(self) -> "ManifestSource":
        """The same for a worker that is told its part: of thousands of parts each needs one."""
        return dataclasses.replace(self, found=())

    def list_part(self, part: Part) -> Iterator[ImageRef | Rejected]:
        if _version(self.path) != self.version:
            raise UsageError(
                f"input {self.path}: has changed since the job was started; start it again"
            )
        with storage.open_read(self.path) as file:
            file.seek(part.offset)
            data = io.BytesIO(file.read(part.length))
        rows = [row for row, _, _ in _rows(self.path, data, self.header, line=part.line)]
        with ThreadPoolExecutor(LOOKING) as pool:
            yield from pool.map(self._look, rows)

    def _look(self, row: Row) -> ImageRef | Rejected:
        name, class_name = _text(row, self.options.path), _text(row, self.options.label)
        path = path_in_manifest(self.path, name)
        source_id = _source_id(self.path, path)
        try:
            info = storage.stat(path)
        except OSError as error:
            problem = storage.problem_of_file(error)
            if problem is None:
                raise UsageError(f"{path}: {error.strerror}; run the same command again") from error
            return Rejected(source_id, class_name, problem)
        return ImageRef(
            source_id=source_id,
            path=path,
            class_name=class_name,
            size=info.size,
            modified=0 if info.md5 else info.modified,
            split=_text(row, self.split) or None if self.split else None,
            md5=info.md5,
            extra=tuple(row.get(name) for name in self.columns),
        )


def open_manifest(path: str, options: ManifestInput, *, labelled: bool = True) -> ManifestSource:
    """Reads a list through once: its columns, its parts, and whether any row is wrong.

    Args:
      path: the list.
      options: how its columns are called.
      labelled: whether every image must have a class.

    Raises:
      UsageError: no such column, or the first row that is wrong, with its line.
    """
    version = _version(path)
    scan = _Scan(path, options, labelled=labelled)
    # From a bucket in one piece: a request a line would take hours.
    whole = storage.is_bucket(path)
    with io.BytesIO(storage.read(path)) if whole else storage.open_read(path) as file:
        parts = scan.parts(file, _header(path, file))
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
        found=parts,
        version=version,
    )


def _version(path: str) -> str:
    info = storage.stat(path)
    return f"{info.size} {info.md5 or info.modified}"


class _Scan:
    """One walk over all rows."""

    def __init__(self, path: str, options: ManifestInput, *, labelled: bool) -> None:
        self.path, self.options, self.labelled = path, options, labelled
        self.required = {options.path, options.label} if labelled else {options.path}
        self.header: tuple[str, ...] = ()
        self.columns: dict[str, None] = {}

    def parts(self, file: BinaryIO, header: tuple[str, ...]) -> list[Part]:
        self.header = header
        self.columns = dict.fromkeys(header)
        start = file.tell()
        # Of each row: where it ends, its line, and a hash of its source id.
        ends, lines, seen = array("q"), array("q"), array("q")
        for row, line, end in _rows(self.path, file, header, line=2 if header else 1):
            where = f"input {self.path}, line {line}"
            self.columns.update(dict.fromkeys(row))
            if not ends and not self.required <= {*row}:
                break  # a wrong name of a column, not a wrong row
            if unusual := next((n for n, value in row.items() if not _is_plain(n, value)), None):
                raise UsageError(f"{where}: {unusual!r} has characters that are no text")
            name = _text(row, self.options.path)
            if not name:
                raise UsageError(f"{where}: no {self.options.path}")
            if self.labelled and not _text(row, self.options.label):
                raise UsageError(f"{where}: no {self.options.label} for {name}")
            seen.append(hash(_source_id(self.path, path_in_manifest(self.path, name))))
            ends.append(end)
            lines.append(line)
        _, counts = np.unique(np.frombuffer(seen, np.int64), return_counts=True)
        if (counts > 1).any():
            file.seek(start)
            self._check_once(file, header)
        step = max(ROWS_A_PART, -(-len(ends) // PARTS))
        last = [*range(step - 1, len(ends) - 1, step), *range(len(ends))[-1:]]
        edges = [(start, 1 if header else 0), *((ends[row], lines[row]) for row in last)]
        return [
            Part(offset=offset, length=end - offset, line=line + 1)
            for (offset, line), (end, _) in itertools.pairwise(edges)
        ]

    def _check_once(self, file: BinaryIO, header: tuple[str, ...]) -> None:
        lines: dict[str, int] = {}
        for row, line, _ in _rows(self.path, file, header, line=2 if header else 1):
            path = path_in_manifest(self.path, _text(row, self.options.path))
            source_id = _source_id(self.path, path)
            if source_id in lines:
                raise UsageError(
                    f"input {self.path}, line {line}: {source_id} stands in line"
                    f" {lines[source_id]} already"
                )
            lines[source_id] = line


def _is_plain(*texts: str | None) -> bool:
    """Whether these can be names of files and be written: no NUL, no half of a character."""
    for text in texts:
        if text and "\0" in text:
            return False
        if text and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return False
    return True


def _text(row: Row, column: str) -> str:
    return (row.get(column) or "").strip()


def _source_id(manifest: str, path: str) -> str:
    folder = posixpath.dirname(manifest)
    if storage.is_bucket(path):
        return path.removeprefix(f"{folder}/")
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _header(path: str, file: BinaryIO) -> tuple[str, ...]:
    """Columns that a CSV file begins with; none for JSONL."""
    if not path.lower().endswith(".csv"):
        return ()
    for row, _, _ in _csv_rows(path, file, line=1):
        twice = sorted({name for name in row if row.count(name) > 1})
        if twice:
            raise UsageError(f"input {path}: the header has {twice[0]!r} twice")
        return tuple(row)
    raise UsageError(f"input {path}: empty; expected a header such as path,label")


def _rows(
    path: str, file: BinaryIO, header: Sequence[str], *, line: int
) -> Iterator[tuple[Row, int, int]]:
    """Rows from the file's position on: (values by column, line, offset after it)."""
    if not header:
        yield from _jsonl_rows(path, file, line=line)
        return
    for values, last, end in _csv_rows(path, file, line=line):
        if len(values) > len(header):
            raise UsageError(
                f"input {path}, line {last}: {len(values)} values for {len(header)} columns"
            )
        missing = [None] * (len(header) - len(values))
        yield dict(zip(header, [*values, *missing], strict=True)), last, end


def _csv_rows(path: str, file: BinaryIO, *, line: int) -> Iterator[tuple[list[str], int, int]]:
    lines = _Lines(path, file, line=line)
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(f"input {path}, line {lines.line}: {error}") from error
        if values:
            yield values, lines.line, lines.offset


def _jsonl_rows(path: str, file: BinaryIO, *, line: int) -> Iterator[tuple[Row, int, int]]:
    lines = _Lines(path, file, line=line)
    for text in lines:
        if not text.strip():
            continue
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UsageError(f"input {path}, line {lines.line}: {error}") from error
        if not isinstance(content, dict):
            raise UsageError(f"input {path}, line {lines.line}: not a JSON object")
        yield {name: _json_text(value) for name, value in content.items()}, lines.line, lines.offset


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


class _Lines:
    """Decoded lines of a file, with the number and the end of the last one handed out.

    csv.reader takes no more lines than its row needs, so that this is where the row ends.
    """

    def __init__(self, path: str, file: BinaryIO, *, line: int) -> None:
        self._path, self._file = path, file
        self.offset, self.line = file.tell(), line - 1

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        data = self._file.readline()
        if not data:
            raise StopIteration
        if self.offset == 0:
            data = data.removeprefix(b"\xef\xbb\xbf")
        self.line += 1
        self.offset = self._file.tell()
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"input {self._path}, line {self.line}: not UTF-8") from error
