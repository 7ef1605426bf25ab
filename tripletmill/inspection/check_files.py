"""The small files of a data set against each other."""

import collections
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tripletmill.formats import index, tfds_layout
from tripletmill.inspection.problem import Problem, unreadable
from tripletmill.storage import storage


def remarks(info: index.DatasetInfo, sizes: Mapping[str, int]) -> Iterator[Problem]:
    """Files that look like the data set's and are not."""
    ours = {index.index_file(info.name, split) for split in info.num_shards}
    ours |= {shard for split in info.num_shards for shard in info.shard_files(split)}
    kinds = r"\.(tfrecord-\d+-of-\d+|index\.parquet)(\..+)?"
    pattern = re.compile(rf"{re.escape(info.name)}-\w+{kinds}|.+\.partial")
    for name in sorted(sizes):
        if name not in ours and pattern.fullmatch(name):
            yield Problem(name, "", "no file of this data set", "stray file", is_remark=True)
    if storage.is_folder(info.path(index.WORK_FOLDER)):
        what = "left over; a finished data set does not need it"
        yield Problem(index.WORK_FOLDER, "", what, "work folder", is_remark=True)


def check_info(info: index.DatasetInfo) -> Iterator[Problem]:
    """dataset_info.json in itself, and features.json."""
    kind = "description of the data set"
    for split, num_shards in sorted(info.num_shards.items()):
        lists = {"shardLengths": info.shard_lengths.get(split, ())}
        if info.shard_crc32c:
            lists["shard_crc32c"] = info.shard_crc32c.get(split, ())
        for name, values in lists.items():
            if len(values) != num_shards:
                what = f"{name} has {len(values)} entries for {num_shards} shards"
                yield Problem(index.INFO_FILE, f"split {split}", what, kind)
    if info.group is not None and info.group not in info.columns:
        yield Problem(index.INFO_FILE, "group", f"{info.group} is none of the columns", kind)
    try:
        same = json.loads(storage.read(info.path(index.FEATURES_FILE)))
    except (OSError, ValueError) as error:
        yield unreadable(index.FEATURES_FILE, error)
    else:
        if same != tfds_layout.features_json():
            yield Problem(index.FEATURES_FILE, "", "other features than those of the records", kind)


def check_lists(info: index.DatasetInfo) -> Iterator[Problem]:
    """The two .jsonl files."""
    rejected = _Lines(info, index.REJECTED_FILE, {"source_id": str, "class": str, "reason": str})
    yield from rejected.problems
    if rejected.count not in (None, info.num_rejected):
        what = f"{rejected.count} lines, {info.num_rejected} in {index.INFO_FILE}"
        yield Problem(index.REJECTED_FILE, "", what, "number of lines")
    expected = {kind: count for kind, count in info.duplicates.items() if count}
    if not expected and not storage.is_file(info.path(index.DUPLICATES_FILE)):
        return
    groups = _Lines(info, index.DUPLICATES_FILE, {"kind": str, "images": list})
    yield from groups.problems
    if groups.count is not None and not groups.problems and dict(groups.kinds) != expected:
        what = f"groups {_counts(groups.kinds)}, in {index.INFO_FILE} {_counts(expected)}"
        yield Problem(index.DUPLICATES_FILE, "", what, "number of lines")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())) or "none"


class _Lines:
    """A .jsonl file read through.

    Attributes:
      count: of lines; None where the file cannot be read.
      kinds: lines by what they have under "kind".
    """

    def __init__(self, info: index.DatasetInfo, file: str, fields: Mapping[str, type]) -> None:
        self.problems: list[Problem] = []
        self.count: int | None = 0
        self.kinds: collections.Counter[str] = collections.Counter()
        try:
            for number, line in enumerate(index.read_lines(info.path(file)), 1):
                self.count = number
                if row := _row(line, fields):
                    self.kinds[row.get("kind", "")] += 1
                else:
                    what = f"no JSON object with {', '.join(fields)}"
                    self.problems.append(Problem(file, f"line {number}", what, "line"))
        except OSError as error:
            self.count = None
            self.problems.append(unreadable(file, error))


def _row(line: bytes, fields: Mapping[str, type]) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    right = isinstance(row, dict) and all(isinstance(row.get(f), t) for f, t in fields.items())
    return row if right else None


class Classes:
    """classes.parquet.

    Attributes:
      problems: with the file in itself.
      rows: (name, count) by split and label; None where the file cannot be read.
    """

    def __init__(self, info: index.DatasetInfo) -> None:
        self.problems: list[Problem] = []
        self.rows: dict[str, dict[int, tuple[str, int]]] | None = None
        file = index.CLASSES_FILE
        try:
            with storage.open_read(info.path(file)) as opened:
                parquet = pq.ParquetFile(opened, page_checksum_verification=True, pre_buffer=False)
                table = parquet.read(use_threads=False)
            table.validate(full=True)  # text that is no UTF-8 would fail later
        except index.UNREADABLE as error:
            self.problems.append(unreadable(file, error))
            return
        self.problems += check_columns(file, table.schema, index.CLASSES_SCHEMA)
        if self.problems:
            return
        self.rows = {split: {} for split in info.num_shards}
        names: dict[int, str] = {}
        labels: dict[str, int] = {}
        for number, row in enumerate(table.to_pylist()):
            label, name, split = row["label"], row["name"], row["split"]
            if None in row.values():
                wrong = "an empty cell"
            elif split not in self.rows:
                wrong = f"there is no split {split!r}"
            elif label in self.rows[split]:
                wrong = f"label {label} is in {split} a second time"
            else:
                self.rows[split][label] = name, row["count"]
                if names.setdefault(label, name) != name:
                    wrong = f"label {label} is {names[label]!r} and {name!r}"
                elif labels.setdefault(name, label) != label:
                    wrong = f"{name!r} is label {labels[name]} and {label}"
                else:
                    continue
            self.problems.append(Problem(file, f"row {number}", wrong, "row of classes"))

    def names(self, split: str) -> dict[int, str] | None:
        """By label."""
        if self.rows is None:
            return None
        return {label: name for label, (name, _) in self.rows[split].items()}


def check_columns(file: str, found: pa.Schema, expected: pa.Schema) -> Iterator[Problem]:
    """Names, types and order of a Parquet file's columns."""
    types = {field.name: field.type for field in found}
    wrong = [f"no column {name}" for name in expected.names if name not in types]
    wrong += [
        f"column {name}, which nobody declares" for name in types if name not in expected.names
    ]
    wrong += [
        f"column {field.name} is {types[field.name]}, not {field.type}"
        for field in expected
        if types.get(field.name, field.type) != field.type
    ]
    if not wrong and found.names != expected.names:
        wrong.append(f"order of the columns is {', '.join(found.names)}")
    for what in wrong:
        yield Problem(file, "", what, "columns")
