"""Checks the small files of a data set and compares them with each other."""

import collections
import json
import re
from collections.abc import Generator, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from tripletmill.formats import index, tfds_layout
from tripletmill.inspection.problem import Problem, unreadable
from tripletmill.storage import storage


def remarks(info: index.DatasetInfo, sizes: Mapping[str, int]) -> Iterator[Problem]:
    """Yields remarks on files and folders that look like the data set's but are not part of it.

    Args:
      info: the data set.
      sizes: bytes of each file in the folder, by name.
    """
    ours = {index.index_file(info.name, split) for split in info.num_shards}
    ours |= {shard for split in info.num_shards for shard in info.shard_files(split)}
    kinds = r"\.(tfrecord-\d+-of-\d+|index\.parquet)(\..+)?"
    pattern = re.compile(rf"{re.escape(info.name)}-\w+{kinds}|.+\.partial")
    for name in sorted(sizes):
        if name not in ours and pattern.fullmatch(name):
            yield Problem(name, "", "no file of this data set", is_remark=True)
    if storage.is_folder(info.path(index.WORK_FOLDER)):
        message = "left over; a finished data set does not need it"
        yield Problem(index.WORK_FOLDER, "", message, is_remark=True)


def check_info(info: index.DatasetInfo) -> Iterator[Problem]:
    """Checks that dataset_info.json agrees with itself, and checks features.json."""
    for split, num_shards in sorted(info.num_shards.items()):
        lists = {"shardLengths": info.shard_lengths[split]}
        if info.shard_crc32c:
            lists["shard_crc32c"] = info.shard_crc32c.get(split, ())
        for name, values in lists.items():
            if len(values) != num_shards:
                message = f"{name} has {len(values)} entries for {num_shards} shards"
                yield Problem(index.INFO_FILE, f"split {split}", message)
    if info.group is not None and info.group not in info.columns:
        yield Problem(index.INFO_FILE, "group", f"{info.group} is none of the columns")
    try:
        content = json.loads(storage.read(info.path(index.FEATURES_FILE)))
    except (OSError, ValueError) as error:
        yield unreadable(index.FEATURES_FILE, error)
        return
    if content != tfds_layout.features_json():
        yield Problem(index.FEATURES_FILE, "", "other features than the records have")


def check_lists(info: index.DatasetInfo) -> Iterator[Problem]:
    """Checks rejected.jsonl and duplicates.jsonl."""
    file, fields = index.REJECTED_FILE, {"source_id": str, "class": str, "reason": str}
    rows = yield from _read_lines(info, file, fields)
    if rows is not None and rows.total() != info.num_rejected:
        message = f"{rows.total()} lines, {info.num_rejected} in {index.INFO_FILE}"
        yield Problem(file, "", message)
    file, expected = index.DUPLICATES_FILE, collections.Counter(info.duplicates)
    if expected.total() or storage.is_file(info.path(file)):
        groups = yield from _read_lines(info, file, {"kind": str, "images": list})
        if groups is not None and groups != expected:
            message = f"groups {_counts(groups)}, in {index.INFO_FILE} {_counts(expected)}"
            yield Problem(file, "", message)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items()) if n) or "none"


def _read_lines(
    info: index.DatasetInfo, file: str, fields: Mapping[str, type]
) -> Generator[Problem, None, collections.Counter[str] | None]:
    """Reads a .jsonl file.

    Returns:
      Number of lines by their "kind", which is "" for a line without one and "damaged" for a line
      that is not right; None if the file cannot be read.
    """
    kinds: collections.Counter[str] = collections.Counter()
    try:
        for number, line in enumerate(index.read_lines(info.path(file)), 1):
            try:
                row = json.loads(line)
                if not all(isinstance(row[name], kind) for name, kind in fields.items()):
                    raise TypeError
                kinds[row.get("kind", "")] += 1
            except (LookupError, TypeError, ValueError):
                kinds["damaged"] += 1
                message = f"no JSON object with {', '.join(fields)}"
                yield Problem(file, f"line {number}", message)
    except OSError as error:
        yield unreadable(file, error)
        return None
    return kinds


ClassRows = dict[str, dict[int, tuple[str, int]]]


def check_classes(info: index.DatasetInfo) -> tuple[ClassRows | None, list[Problem]]:
    """Checks that the rows of classes.parquet agree with each other.

    Returns:
      A pair. Its first part is (name, count) by split and label, or None if the file cannot be
      read. Its second part is the problems.
    """
    file = index.CLASSES_FILE
    try:
        with storage.open_read(info.path(file)) as opened:
            parquet = pq.ParquetFile(opened, page_checksum_verification=True, pre_buffer=False)
            table = parquet.read(use_threads=False)
        table.validate(full=True)  # finds text that is not UTF-8
    except index.UNREADABLE as error:
        return None, [unreadable(file, error)]
    problems = [*check_columns(file, table.schema, index.CLASSES_SCHEMA)]
    if problems:
        return None, problems
    classes: ClassRows = {split: {} for split in info.num_shards}
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for number, row in enumerate(table.to_pylist()):
        label, name, split = row["label"], row["name"], row["split"]
        if None in row.values():
            message = "an empty cell"
        elif split not in classes:
            message = f"there is no split {split!r}"
        elif label in classes[split]:
            message = f"label {label} is in {split} a second time"
        else:
            classes[split][label] = name, row["count"]
            if names.setdefault(label, name) != name:
                message = f"label {label} is {names[label]!r} and {name!r}"
            elif labels.setdefault(name, label) != label:
                message = f"{name!r} is label {labels[name]} and {label}"
            else:
                continue
        problems.append(Problem(file, f"row {number}", message))
    return classes, problems


def check_columns(file: str, schema: pa.Schema, expected: pa.Schema) -> Iterator[Problem]:
    """Checks names, types and order of a Parquet file's columns."""
    if not schema.equals(expected):
        shown = [", ".join(f"{f.name} {f.type}" for f in fields) for fields in (schema, expected)]
        yield Problem(file, "", f"its columns are {shown[0]}; expected {shown[1]}")
