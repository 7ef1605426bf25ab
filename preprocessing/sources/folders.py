"""Where images come from: a folder of class folders, or a CSV file.

A source is cut into parts, small picklable values, so that workers can list them in parallel.
`list_part` gives every file it comes across: as an `ImageRef`, or as `Rejected` with a reason.
"""

import csv
import dataclasses
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from preprocessing.errors import UsageError
from preprocessing.storage import require_local

CSV_ROWS_A_PART = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """One image, not yet read.

    Attributes:
      source_id: its name, relative to the input, with forward slashes; unique in a source.
      path: where a worker reads it.
      class_name: its class.
      split: the split that the input asks for, or None.
      size: bytes.
      modified: time of the last change, nanoseconds.
    """

    source_id: str
    path: str
    class_name: str
    split: str | None
    size: int
    modified: int


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """One file that is left out, and why."""

    source_id: str
    class_name: str
    reason: str


class Source(Protocol):
    """A set of labelled images that can be listed part by part."""

    def parts(self) -> Sequence[Any]:
        """Cuts the input into parts. Raises UsageError if there is nothing to list."""

    def list_part(self, part: Any) -> Iterator[ImageRef | Rejected]:
        """Everything in one part."""


def open_source(input: str) -> Source:
    """The source that a path stands for: a folder, or a file whose name ends in .csv."""
    require_local(input, "input")
    path = Path(input)
    if not path.exists():
        raise UsageError(f"input {input}: no such file or folder")
    if path.is_dir():
        return FolderSource(input)
    if path.suffix.lower() == ".csv":
        return CsvSource(input)
    raise UsageError(f"input {input}: neither a folder of class folders nor a .csv file")


def _stat(path: str) -> tuple[int, int]:
    """Size and time of the last change; raises OSError where there is no regular file."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return status.st_size, status.st_mtime_ns


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A folder with one folder a class; files in folders further down belong to that class.

    Hidden files are listed as rejected, as is a file that lies in no class folder.
    """

    root: str

    def parts(self) -> Sequence[str]:
        """Names of the class folders, sorted, and "" for files that lie beside them."""
        with os.scandir(self.root) as entries:
            names = sorted(entry.name for entry in entries if self._stray_reason(entry) is None)
        if not names:
            raise UsageError(
                f"input {self.root}: no class folders in it; expected {self.root}/CLASS/IMAGE"
            )
        if not any(files for name in names for _, _, files in os.walk(self._path(name))):
            raise UsageError(f"input {self.root}: no images in its {len(names)} class folders")
        return ["", *names]

    def list_part(self, part: str) -> Iterator[ImageRef | Rejected]:
        if part == "":
            yield from self._stray()
            return
        empty = True
        unreadable: list[OSError] = []
        for folder, folders, files in os.walk(self._path(part), onerror=unreadable.append):
            folders.sort()
            links = [path for name in folders if os.path.islink(path := os.path.join(folder, name))]
            for link in links:
                yield Rejected(self._source_id(link), part, "symbolic link to a folder")
            empty = empty and not links and not files
            for file in sorted(files):
                yield self._listed(os.path.join(folder, file), part)
        for error in unreadable:
            yield Rejected(
                self._source_id(error.filename), part, f"cannot be read: {error.strerror}"
            )
        if empty and not unreadable:
            yield Rejected(part, part, "class folder without a file")

    def _path(self, part: str) -> str:
        return os.path.join(self.root, part)

    def _stray(self) -> Iterator[Rejected]:
        with os.scandir(self.root) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                reason = self._stray_reason(entry)
                if reason is not None:
                    yield Rejected(_printable(entry.name), "", reason)

    def _stray_reason(self, entry: os.DirEntry) -> str | None:
        """Why an entry of the root is no class folder; None if it is one."""
        if not entry.is_dir():
            return "not in a class folder"
        if entry.name.startswith("."):
            return "hidden folder"
        return None if _printable(entry.name) == entry.name else "folder name is not valid UTF-8"

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def _source_id(self, path: str) -> str:
        return _printable(self._relative(path))

    def _listed(self, path: str, class_name: str) -> ImageRef | Rejected:
        relative = self._relative(path)
        source_id = _printable(relative)
        if any(name.startswith(".") for name in source_id.split("/")[1:]):
            return Rejected(source_id, class_name, "hidden file")
        if source_id != relative:
            return Rejected(source_id, class_name, "file name is not valid UTF-8")
        try:
            size, modified = _stat(path)
        except OSError as error:
            return Rejected(source_id, class_name, f"cannot be read: {error.strerror}")
        return ImageRef(source_id, path, class_name, None, size, modified)


def _printable(name: str) -> str:
    """The name, with bytes that are no UTF-8 as backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclasses.dataclass(frozen=True)
class CsvSource:
    """A CSV file with a header: columns `path`, `label` and, if wanted, `split`.

    Paths are relative to the file's folder, or absolute. UTF-8, with or without a byte order mark.
    """

    path: str

    def parts(self) -> Sequence[tuple[ImageRef, ...]]:
        """Chunks of rows. Raises UsageError with the line of the first row that is wrong."""
        refs = list(self._rows())
        if not refs:
            raise UsageError(f"input {self.path}: no rows below the header")
        chunks = range(0, len(refs), CSV_ROWS_A_PART)
        return [tuple(refs[start : start + CSV_ROWS_A_PART]) for start in chunks]

    def list_part(self, part: Iterable[ImageRef]) -> Iterator[ImageRef]:
        return iter(part)

    def _rows(self) -> Iterator[ImageRef]:
        folder = os.path.dirname(self.path)
        seen: dict[str, int] = {}
        try:
            with open(self.path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                missing = {"path", "label"} - set(reader.fieldnames or ())
                if missing:
                    raise UsageError(
                        f"input {self.path}: header lacks {' and '.join(sorted(missing))};"
                        " expected path,label or path,label,split"
                    )
                for row in reader:
                    line = f"input {self.path}, line {reader.line_num}"
                    ref = self._ref(row, line, folder)
                    if ref.source_id in seen:
                        raise UsageError(
                            f"{line}: {ref.source_id} stands in line {seen[ref.source_id]} already"
                        )
                    seen[ref.source_id] = reader.line_num
                    yield ref
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"input {self.path}: not a CSV file in UTF-8 ({error})") from error

    def _ref(self, row: dict[str, str], line: str, folder: str) -> ImageRef:
        file, label = (row["path"] or "").strip(), (row["label"] or "").strip()
        if not file:
            raise UsageError(f"{line}: no path")
        if not label:
            raise UsageError(f"{line}: no label for {file}")
        path = os.path.join(folder, file)
        if not os.path.isfile(path):
            raise UsageError(f"{line}: no such file: {path}")
        size, modified = _stat(path)
        return ImageRef(
            source_id=os.path.relpath(path, folder or ".").replace(os.sep, "/"),
            path=path,
            class_name=label,
            split=(row.get("split") or "").strip() or None,
            size=size,
            modified=modified,
        )
