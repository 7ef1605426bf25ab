"""The last step: sidecars become the index, and the data set is there.

dataset_info.json is written last; with it the data set is finished, without it it is not.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.sources.references import Rejected
from preprocessing.writing import duplicates
from preprocessing.writing.claim import Claim, work_folder
from preprocessing.writing.plan import Plan
from preprocessing.writing.shards import index_schema
from preprocessing.writing.sidecars import Sidecar, read_sidecars
from tripletmill.errors import UsageError
from tripletmill.formats import index, tfds_layout
from tripletmill.storage import storage

REASONS_SHOWN = 3
Counts = collections.Counter[tuple[str, int]]  # images by split and label


@dataclasses.dataclass(frozen=True)
class CommitInfo:
    """What a commit needs besides the plan.

    Attributes:
      name: first part of the file names.
      settings: what decided the bytes; kept in dataset_info.json.
      input_fingerprint: of the images listed.
      columns: names of the further values of images.
      group: the one of them that says which images belong together, if any.
      num_listed: images, those that listing could not use among them.
      max_rejected_share: of these, 0 to 1.
      min_images: of a class.
    """

    name: str
    settings: Mapping[str, Any]
    input_fingerprint: str
    columns: Sequence[str]
    group: str | None
    num_listed: int
    max_rejected_share: float
    min_images: int


def commit(
    plan: Plan,
    claim: Claim,
    finish: CommitInfo,
    *,
    left_out: Iterable[Rejected],
    groups: Iterable[duplicates.DuplicateGroup],
) -> None:
    """Turns finished shards into a finished data set.

    Args:
      plan: which shards there are.
      claim: the job's, with the folder of the data set and that of sidecars.
      finish: what dataset_info.json says.
      left_out: what was left out before any image was read.
      groups: exact duplicates.

    Raises:
      UsageError: more images than may be were rejected, or all of a split's; a shard is not there;
        another job has begun in this output.
    """
    output = claim.output
    rejected = list(left_out)
    counts: Counts = collections.Counter()
    splits: dict[str, tfds_layout.SplitInfo] = {}
    checksums: dict[str, list[int]] = {}
    written: set[str] = set()
    for split, num_shards in plan.num_shards.items():
        files = [index.shard_file(finish.name, split, i, num_shards) for i in range(num_shards)]
        written |= {index.index_file(finish.name, split), *files}
        path = storage.join(output, index.index_file(finish.name, split))
        splits[split], checksums[split] = _write_index(
            path, read_sidecars(claim, files), finish.columns, split, counts, rejected
        )
    _write(output, index.REJECTED_FILE, rejected_lines(rejected))
    empty = [f"split {split}" for split, info in splits.items() if not sum(info.shard_lengths)]
    check_rejected(
        [r for r in rejected if r.lost],
        num_listed=finish.num_listed,
        max_share=finish.max_rejected_share,
        output=output,
        empty=empty[0] if empty else "",
    )

    groups = list(groups)
    _write(output, index.DUPLICATES_FILE, duplicates.write_groups(groups))
    _write_classes(output, plan, counts)
    _write(output, index.FEATURES_FILE, _json(tfds_layout.features_json()))
    extra = {
        "format_version": index.FORMAT_VERSION,
        "classes_fallen_below": _fallen_below(plan, counts, finish.min_images),
        "classes_left_out": list(plan.too_small),
        "columns": [f"x_{name}" for name in finish.columns],
        "duplicates": {kind: sum(g.kind == kind for g in groups) for kind in duplicates.KINDS},
        "group": finish.group and f"x_{finish.group}",
        "input_fingerprint": finish.input_fingerprint,
        "num_classes": {
            split: sum(counted > 0 for (s, _), counted in counts.items() if s == split)
            for split in splits
        },
        "num_images": {split: sum(info.shard_lengths) for split, info in splits.items()},
        "num_rejected": len(rejected),
        "num_shards": dict(plan.num_shards),
        "settings": finish.settings,
        "shard_crc32c": checksums,
    }
    _remove_files(output, finish.name, keep=written)
    claim.check()
    info = tfds_layout.dataset_info_json(name=finish.name, splits=splits, extra=extra)
    _write(output, index.INFO_FILE, _json(info))
    remove_work(output)


def _write_index(
    path: str,
    sidecars: Iterable[Sidecar],
    columns: Sequence[str],
    split: str,
    counts: Counts,
    rejected: list[Rejected],
) -> tuple[tfds_layout.SplitInfo, list[int]]:
    """Joins sidecars, one at a time in memory; adds to `counts` and `rejected`."""
    lengths, num_bytes, checksums = [], 0, []
    schema = index_schema(columns)
    with storage.atomic_file(path) as file, _parquet_writer(file, schema) as writer:
        for sidecar in sidecars:
            writer.write_table(sidecar.rows)
            labels = collections.Counter(sidecar.rows["label"].to_pylist())
            counts.update({(split, label): count for label, count in labels.items()})
            rejected.extend(sidecar.rejected)
            lengths.append(len(sidecar.rows))
            num_bytes += sidecar.num_bytes
            checksums.append(sidecar.crc32c)
    return tfds_layout.SplitInfo(shard_lengths=lengths, num_bytes=num_bytes), checksums


def _parquet_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    # Checksums, so that `verify` finds damage in columns that nothing else confirms.
    return pq.ParquetWriter(file, schema, write_page_checksum=True)


def rejected_lines(rejected: Iterable[Rejected]) -> bytes:
    """Content of a rejected.jsonl, sorted."""
    rows = [
        {"source_id": r.source_id, "class": r.class_name, "reason": r.reason}
        for r in sorted(rejected, key=lambda r: (r.source_id, r.reason))
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def check_rejected(
    lost: Sequence[Rejected], *, num_listed: int, max_share: float, output: str, empty: str = ""
) -> None:
    """Raises UsageError where too many images were rejected, with the most frequent reasons.

    Args:
      lost: the images that could not be used.
      num_listed: of so many.
      max_share: of these, 0 to 1, that may be.
      output: where rejected.jsonl lies.
      empty: what has none left, if anything; it is an error all the same.
    """
    if len(lost) <= max_share * num_listed and not empty:
        return
    reasons = collections.Counter(r.reason for r in lost).most_common(REASONS_SHOWN)
    what = f"{empty} has no readable image, " if empty else ""
    raise UsageError(
        f"{what}{len(lost)} of {num_listed} images rejected (at most {max_share:.0%} may be):"
        f" {'; '.join(f'{count} x {reason}' for reason, count in reasons)};"
        f" see {storage.join(output, index.REJECTED_FILE)}"
    )


def _write_classes(output: str, plan: Plan, counts: Counts) -> None:
    rows = [
        {"label": c.label, "name": c.name, "split": split, "count": counts[split, c.label]}
        for c in sorted(plan.classes.values(), key=lambda c: c.label)
        for split in c.pieces
    ]
    path, schema = storage.join(output, index.CLASSES_FILE), index.CLASSES_SCHEMA
    with storage.atomic_file(path) as file, _parquet_writer(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _fallen_below(plan: Plan, counts: Counts, min_images: int) -> list[str]:
    """Classes that were large enough until images of theirs could not be read."""
    left = {
        name: sum(counts[split, planned.label] for split in planned.pieces)
        for name, planned in plan.classes.items()
    }
    return sorted(name for name, count in left.items() if count < min_images)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _write(output: str, name: str, data: bytes) -> None:
    storage.write_file(storage.join(output, name), data)


def remove_work(output: str) -> None:
    """Removes the folder of what is needed until the commit."""
    storage.remove_tree(work_folder(output))


def remove_data_set(output: str, name: str) -> None:
    """Removes a data set of this name, finished or not, but for its work folder.

    dataset_info.json goes first, so that a data set is never half there.
    """
    for file in (
        index.INFO_FILE,
        index.FEATURES_FILE,
        index.CLASSES_FILE,
        index.REJECTED_FILE,
        index.DUPLICATES_FILE,
    ):
        storage.remove(storage.join(output, file))
    _remove_files(output, name, keep=set())


def _remove_files(output: str, name: str, *, keep: set[str]) -> None:
    """Removes shards and indices of a data set of this name."""
    ours = re.compile(rf"{re.escape(name)}-\w+\.(tfrecord-\d+-of-\d+|index\.parquet)")
    for info in storage.list_files(output):
        file = info.path.rpartition("/")[2]
        if ours.fullmatch(file) and file not in keep:
            storage.remove(info.path)
