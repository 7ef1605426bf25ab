"""Checks the small files of a data set and compares them with each other."""

import collections
import json
import re
from collections.abc import Iterator, Mapping

import pyarrow as pa

from tripletmill.errors import UsageError
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
    """Checks each line of rejected.jsonl and duplicates.jsonl, and the numbers of lines."""
    rejected = {"source_id": str, "class": str, "reason": str}
    yield from _check_lines(info, index.REJECTED_FILE, rejected, {"lines": info.num_rejected})
    file = index.DUPLICATES_FILE
    if any(info.duplicates.values()) or storage.is_file(info.path(file)):
        yield from _check_lines(info, file, {"kind": str, "images": list}, info.duplicates)


def _check_lines(
    info: index.DatasetInfo, file: str, fields: Mapping[str, type], stated: Mapping[str, int]
) -> Iterator[Problem]:
    """Checks a .jsonl file; `stated` is the number of its lines by their "kind"."""
    counts: collections.Counter[str] = collections.Counter()
    try:
        for number, line in enumerate(index.read_lines(info.path(file)), 1):
            try:
                row = json.loads(line)
                if not all(isinstance(row[name], kind) for name, kind in fields.items()):
                    raise TypeError
                counts[row.get("kind", "lines")] += 1
            except (LookupError, TypeError, ValueError):
                message = f"no JSON object with {', '.join(fields)}"
                yield Problem(file, f"line {number}", message)
    except OSError as error:
        yield unreadable(file, error)
        return
    for kind in sorted({*counts, *stated}):
        if counts[kind] != stated.get(kind, 0):
            message = f"{kind}: {counts[kind]}, but {stated.get(kind, 0)} in {index.INFO_FILE}"
            yield Problem(file, "", message)


ClassCounts = dict[str, dict[int, int]]


def check_classes(
    info: index.DatasetInfo,
) -> tuple[dict[int, str], ClassCounts | None, list[Problem]]:
    """Checks that the rows of classes.parquet agree with each other.

    Returns:
      The class names by label; the number of images by split and label, or None if the file
      cannot be read; and the problems.
    """
    file = index.CLASSES_FILE
    names: dict[int, str] = {}
    table, problems = read_parquet(info, file, index.CLASSES_SCHEMA)
    if table is None:
        return names, None, problems
    counts: ClassCounts = {split: {} for split in info.num_shards}
    labels: dict[str, int] = {}
    for number, row in enumerate(table.to_pylist()):
        label, name, split = row["label"], row["name"], row["split"]
        if None in row.values() or split not in counts:
            message = f"an empty cell, or an unknown split: {row}"
        elif (
            label in counts[split]
            or names.setdefault(label, name) != name
            or labels.setdefault(name, label) != label
        ):
            message = f"contradicts an earlier row: label {label}, {name!r}, {split}"
        else:
            counts[split][label] = row["count"]
            continue
        problems.append(Problem(file, f"row {number}", message))
    return names, counts, problems


def read_parquet(
    info: index.DatasetInfo, file: str, expected: pa.Schema
) -> tuple[pa.Table | None, list[Problem]]:
    """Reads a Parquet file and checks names, types and order of its columns.

    Returns:
      The table, or None if it cannot be read or has other columns; and the problems.
    """
    try:
        table = index.read_table(info.path(file))
    except UsageError as error:
        return None, [unreadable(file, error)]
    if table.schema.equals(expected):
        return table, []
    shown = [", ".join(f"{f.name} {f.type}" for f in each) for each in (table.schema, expected)]
    return None, [Problem(file, "", f"its columns are {shown[0]}; expected {shown[1]}")]
