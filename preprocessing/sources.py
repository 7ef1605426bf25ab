"""Where images come from: a folder of class folders, or a CSV file.

A source is cut into parts, small picklable values, so that workers can list them in parallel.
`list_part` gives every file it comes across: as an `ImageRef`, or as `Rejected` with a reason.
"""

import csv
import dataclasses
import os
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
      version: changes when the file does (modification time in nanoseconds).
    """

    source_id: str
    path: str
    class_name: str
    split: str | None
    size: int
    version: str


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


def _stat(path: str) -> tuple[int, str]:
    status = os.stat(path)
    return status.st_size, str(status.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A folder with one folder a class; files in folders further down belong to that class.

    Hidden files are listed as rejected, as is a file that lies in no class folder.
    """

    root: str

    def parts(self) -> Sequence[str]:
        """Names of the class folders, sorted, and "" for files that lie beside them."""
        with os.scandir(self.root) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
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
        for folder, folders, files in os.walk(self._path(part)):
            folders.sort()
            empty = empty and not files
            for file in sorted(files):
                path = os.path.join(folder, file)
                yield self._listed(path, os.path.relpath(path, self.root), part)
        if empty:
            yield Rejected(_printable(part), _printable(part), "class folder without a file")

    def _path(self, part: str) -> str:
        return os.path.join(self.root, part)

    def _stray(self) -> Iterator[Rejected]:
        with os.scandir(self.root) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if not entry.is_dir():
                    yield Rejected(_printable(entry.name), "", "not in a class folder")
                elif entry.name.startswith("."):
                    yield Rejected(_printable(entry.name), "", "hidden folder")

    def _listed(self, path: str, relative: str, class_name: str) -> ImageRef | Rejected:
        source_id = relative.replace(os.sep, "/")
        printable = _printable(source_id)
        if any(name.startswith(".") for name in source_id.split("/")[1:]):
            return Rejected(printable, _printable(class_name), "hidden file")
        if printable != source_id:
            return Rejected(printable, _printable(class_name), "file name is not valid UTF-8")
        try:
            size, version = _stat(path)
        except OSError as error:
            return Rejected(source_id, class_name, f"cannot be read: {error.strerror}")
        return ImageRef(source_id, path, class_name, None, size, version)


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
        size, version = _stat(path)
        return ImageRef(
            source_id=os.path.normpath(file).replace(os.sep, "/"),
            path=path,
            class_name=label,
            split=(row.get("split") or "").strip() or None,
            size=size,
            version=version,
        )
