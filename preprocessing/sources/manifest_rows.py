"""Reads the rows of a manifest, with the line and the byte offset at which each row ends."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from tripletmill.errors import UsageError


class Row(NamedTuple):
    """One row of a manifest.

    Attributes:
      values: the values by column. A column that the row lacks is missing or None.
      line: the number of the row's last line.
      end: the byte offset in the file after the row.
    """

    values: Mapping[str, str | None]
    line: int
    end: int


def read_header(path: str, file: BinaryIO) -> tuple[str, ...]:
    """Reads the columns that a CSV file begins with. A JSONL file has none.

    Raises:
      UsageError: the CSV file is empty, or a column stands in it twice.
    """
    if not path.lower().endswith(".csv"):
        return ()
    for names, _, _ in _csv_rows(path, file, line=1):
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UsageError(f"input {path}: the header has {repeated[0]!r} twice")
        return tuple(names)
    raise UsageError(f"input {path}: empty; expected a header such as path,label")


def read_rows(path: str, file: BinaryIO, header: Sequence[str], *, line: int) -> Iterator[Row]:
    """Reads all rows from the position of a file to its end. Blank lines are skipped.

    Args:
      path: the manifest, for messages.
      file: the open manifest, or a part of it that begins at the start of a row.
      header: the columns of a CSV file; empty for JSONL.
      line: the number of the first line that is read, for messages. The first line of a file is 1.

    Raises:
      UsageError: a line is not UTF-8, or a row is not valid CSV or JSON.
    """
    if not header:
        yield from _jsonl_rows(path, file, line=line)
        return
    for values, last_line, end in _csv_rows(path, file, line=line):
        if len(values) > len(header):
            raise UsageError(
                f"input {path}, line {last_line}: {len(values)} values for {len(header)} columns"
            )
        missing = [None] * (len(header) - len(values))
        yield Row(dict(zip(header, [*values, *missing], strict=True)), last_line, end)


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


def _jsonl_rows(path: str, file: BinaryIO, *, line: int) -> Iterator[Row]:
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
        values = {name: _json_text(value) for name, value in content.items()}
        yield Row(values, lines.line, lines.offset)


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


class _Lines:
    """Iterates over the decoded lines of a file.

    csv.reader takes no more lines than its row needs. So after each row, `line` and `offset` say
    where the row ends.

    Attributes:
      line: the number of the last line that was taken.
      offset: the byte offset after this line.
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
