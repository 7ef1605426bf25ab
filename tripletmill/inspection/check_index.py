"""Checks the index of a split, and compares the numbers in other files with the index."""

import collections
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tripletmill.formats import index
from tripletmill.inspection.check_files import ClassCounts, read_parquet
from tripletmill.inspection.problem import Problem


def check_index(info: index.DatasetInfo, split: str) -> tuple[pa.Table | None, list[Problem]]:
    """Checks the columns, the cells and the order of a split's index.

    Returns:
      A pair. Its first part is the rows without an empty cell, with the columns of INDEX_SCHEMA
      and "number", the row's number in the file; None if the index cannot be read or has other
      columns. Its second part is the problems.
    """
    file = index.index_file(info.name, split)
    further = [(name, pa.string()) for name in info.columns]
    table, problems = read_parquet(info, file, pa.schema([*index.INDEX_SCHEMA, *further]))
    if table is None:
        return None, problems
    table = table.select(index.INDEX_SCHEMA.names)
    rows = table.append_column("number", pa.array(range(len(table)), pa.int64())).drop_null()
    number, shard, offset, label = (
        rows[name].to_numpy() for name in ("number", "shard", "offset", "label")
    )
    is_next = (np.diff(shard) == 0) & (np.diff(offset) > 0) & (np.diff(label) >= 0)
    is_next |= np.diff(shard) > 0
    last = info.num_shards[split] - 1
    for message, numbers in {
        "an empty cell": np.setdiff1d(np.arange(len(table)), number),
        f"a shard that is not 0 to {last}": number[(shard < 0) | (shard > last)],
        "not sorted by shard and offset, or a class in several pieces": number[1:][~is_next],
    }.items():
        problems += [Problem(file, f"row {row}", message) for row in numbers.tolist()]
    return rows, problems


def check_counts(
    info: index.DatasetInfo,
    split: str,
    rows: pa.Table | None,
    sizes: Mapping[str, int],
    classes: ClassCounts | None,
) -> Iterator[Problem]:
    """Compares the numbers in dataset_info.json and classes.parquet with the index and the shards.

    Args:
      info: the data set.
      split: name of the split.
      rows: rows of the index, as `check_index` returns them.
      sizes: bytes of each file in the folder, by name.
      classes: as `check_classes` returns them.
    """
    where = f"split {split}"
    num_bytes = sum(sizes.get(shard, 0) for shard in info.shard_files(split))
    numbers = [("numBytes", info.num_bytes[split], num_bytes)]
    labels: collections.Counter[int] = collections.Counter()
    if rows is not None:
        labels.update(rows["label"].to_pylist())
        in_shard = collections.Counter(rows["shard"].to_pylist())
        numbers += [
            ("num_images", info.num_images[split], len(rows)),
            ("num_classes", info.num_classes[split], len(labels)),
        ]
        for shard, length in enumerate(info.shard_lengths[split]):
            numbers.append((f"shardLengths of shard {shard}", length, in_shard[shard]))
    for name, stated, counted in numbers:
        if stated != counted:
            yield Problem(index.INFO_FILE, where, f"{name} is {stated:,}, but {counted:,} found")
    if rows is None or classes is None:
        return
    stated_counts = classes.get(split, {})
    for label in sorted({*stated_counts, *labels}):
        stated, counted = stated_counts.get(label, 0), labels[label]
        if stated != counted:
            message = f"{stated:,} images, but {counted:,} in {index.index_file(info.name, split)}"
            yield Problem(index.CLASSES_FILE, f"{where}, label {label}", message)


def check_source_ids(info: index.DatasetInfo, indexes: Mapping[str, pa.Table]) -> Iterator[Problem]:
    """Reports source ids that occur twice, in one split or in two.

    Args:
      info: the data set.
      indexes: "number" and "source_id" of the rows of each index, by split.
    """
    tables = [*indexes.values()]
    if not tables:
        return
    # The ids of all splits may have more than 2 GiB.
    counts = pc.value_counts(pa.concat_tables(tables)["source_id"].cast(pa.large_string()))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    for split, rows in indexes.items():
        is_repeated = pc.is_in(rows["source_id"].cast(pa.large_string()), repeated)
        for row in rows.filter(is_repeated).to_pylist():
            where = f"row {row['number']}, {row['source_id']}"
            message = "another row has this source id, too"
            yield Problem(index.index_file(info.name, split), where, message)
