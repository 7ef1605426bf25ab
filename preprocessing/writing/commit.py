"""The last step of a job: it joins the sidecars into the index and finishes the data set.

dataset_info.json is written last. A data set is finished if and only if this file is there.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
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


@dataclasses.dataclass
class _Written:
    """What the shards hold, as their sidecars say.

    Attributes:
      rejected: all files that were left out.
      counts: numbers of images by split and label.
      splits: shard lengths and bytes by split.
      checksums: the CRC-32C of each shard, by split.
      files: names of the shards and index files.
    """

    rejected: list[Rejected]
    counts: collections.Counter[tuple[str, int]] = dataclasses.field(
        default_factory=collections.Counter
    )
    splits: dict[str, tfds_layout.SplitInfo] = dataclasses.field(default_factory=dict)
    checksums: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    files: set[str] = dataclasses.field(default_factory=set)

    def images_in(self, split: str) -> int:
        return sum(self.splits[split].shard_lengths)

    def classes_in(self, split: str) -> int:
        return sum(count > 0 for (name, _), count in self.counts.items() if name == split)


def commit(
    plan: Plan,
    claim: Claim,
    *,
    left_out: Iterable[Rejected],
    groups: Iterable[duplicates.DuplicateGroup],
    num_listed: int,
    max_rejected_share: float,
) -> None:
    """Turns finished shards into a finished data set.

    Args:
      plan: says which shards there are.
      claim: the job's claim, which has the settings of the job and names the folders of the data
        set and of the sidecars.
      left_out: the files that were left out before any image was read.
      groups: the exact duplicates.
      num_listed: how many images were listed, including those that listing could not use.
      max_rejected_share: the share of the listed images that may be rejected, 0 to 1.

    Raises:
      UsageError: more images were rejected than allowed; a split has no readable image; a shard is
        missing or incomplete; or another job has begun to write into this output.
    """
    output, name, groups = claim.output, claim.content["settings"]["name"], list(groups)
    written = _write_indices(plan, claim, left_out)
    _write(output, index.REJECTED_FILE, rejected_lines(written.rejected))
    empty = [f"split {split}" for split in written.splits if not written.images_in(split)]
    check_rejected(
        [rejected for rejected in written.rejected if rejected.lost],
        num_listed=num_listed,
        max_share=max_rejected_share,
        output=output,
        empty=empty[0] if empty else "",
    )
    _write(output, index.DUPLICATES_FILE, duplicates.write_groups(groups))
    _write_classes(output, plan, written)
    _write(output, index.FEATURES_FILE, _json(tfds_layout.features_json()))
    extra = _dataset_info(plan, claim, written, groups)
    remove_shards(output, _shards_pattern(name), keep=written.files)
    claim.check()
    content = tfds_layout.dataset_info_json(name=name, splits=written.splits, extra=extra)
    _write(output, index.INFO_FILE, _json(content))
    remove_work(output)


def _dataset_info(
    plan: Plan, claim: Claim, written: _Written, groups: Sequence[duplicates.DuplicateGroup]
) -> dict[str, Any]:
    """What dataset_info.json says beyond the fields of TensorFlow Datasets."""
    settings = claim.content["settings"]
    return {
        "format_version": index.FORMAT_VERSION,
        "classes_fallen_below": _fallen_below(plan, written, settings["min_images"]),
        "classes_left_out": list(plan.too_small),
        "columns": [f"x_{name}" for name in settings["columns"]],
        "duplicates": {
            kind: sum(group.kind == kind for group in groups) for kind in duplicates.KINDS
        },
        "group": settings["group"] and f"x_{settings['group']}",
        "input_fingerprint": claim.content["input_fingerprint"],
        "num_classes": {split: written.classes_in(split) for split in written.splits},
        "num_images": {split: written.images_in(split) for split in written.splits},
        "num_rejected": len(written.rejected),
        "num_shards": dict(plan.num_shards),
        "settings": settings,
        "shard_crc32c": written.checksums,
    }


def _write_indices(plan: Plan, claim: Claim, left_out: Iterable[Rejected]) -> _Written:
    """Writes the index of every split and adds up what the sidecars say."""
    name, columns = claim.content["settings"]["name"], claim.content["settings"]["columns"]
    written = _Written(list(left_out))
    for split, num_shards in plan.num_shards.items():
        shards = [index.shard_file(name, split, i, num_shards) for i in range(num_shards)]
        index_file = index.index_file(name, split)
        path = storage.join(claim.output, index_file)
        _write_index(path, read_sidecars(claim, shards), columns, split, written)
        written.files |= {index_file, *shards}
    return written


def _write_index(
    path: str, sidecars: Iterable[Sidecar], columns: Sequence[str], split: str, written: _Written
) -> None:
    """Writes a split's index from its sidecars, with one sidecar at a time in memory."""
    lengths, num_bytes, checksums = [], 0, []
    schema = index_schema(columns)
    with storage.atomic_file(path) as file, _parquet_writer(file, schema) as writer:
        for sidecar in sidecars:
            writer.write_table(sidecar.rows)
            labels = collections.Counter(sidecar.rows["label"].to_pylist())
            written.counts.update({(split, label): count for label, count in labels.items()})
            written.rejected.extend(sidecar.rejected)
            lengths.append(len(sidecar.rows))
            num_bytes += sidecar.num_bytes
            checksums.append(sidecar.crc32c)
    written.splits[split] = tfds_layout.SplitInfo(shard_lengths=lengths, num_bytes=num_bytes)
    written.checksums[split] = checksums


def _parquet_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    # With page checksums, `verify` also finds damage in columns that nothing else confirms.
    return pq.ParquetWriter(file, schema, write_page_checksum=True)


def rejected_lines(rejected: Iterable[Rejected]) -> bytes:
    """The content of rejected.jsonl: one line per file, sorted by source id and reason."""
    rows = [
        {"source_id": file.source_id, "class": file.class_name, "reason": file.reason}
        for file in sorted(rejected, key=lambda file: (file.source_id, file.reason))
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def check_rejected(
    lost: Sequence[Rejected], *, num_listed: int, max_share: float, output: str, empty: str = ""
) -> None:
    """Raises UsageError, with the most frequent reasons, if too many images were rejected.

    Args:
      lost: the images that could not be used.
      num_listed: how many images were listed.
      max_share: the share of the listed images that may be lost, 0 to 1.
      output: the folder in which rejected.jsonl lies.
      empty: what has no readable image left, such as "split val", or "". Any text but "" is an
        error, even if few images were lost.
    """
    if len(lost) <= max_share * num_listed and not empty:
        return
    reasons = collections.Counter(image.reason for image in lost).most_common(REASONS_SHOWN)
    no_image = f"{empty} has no readable image, " if empty else ""
    raise UsageError(
        f"{no_image}{len(lost)} of {num_listed} images rejected (at most {max_share:.0%} may be):"
        f" {'; '.join(f'{count} x {reason}' for reason, count in reasons)};"
        f" see {storage.join(output, index.REJECTED_FILE)}"
    )


def _write_classes(output: str, plan: Plan, written: _Written) -> None:
    rows = [
        {
            "label": planned.label,
            "name": planned.name,
            "split": split,
            "count": written.counts[split, planned.label],
        }
        for planned in sorted(plan.classes.values(), key=lambda planned: planned.label)
        for split in planned.pieces
    ]
    path, schema = storage.join(output, index.CLASSES_FILE), index.CLASSES_SCHEMA
    with storage.atomic_file(path) as file, _parquet_writer(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _fallen_below(plan: Plan, written: _Written, min_images: int) -> list[str]:
    """The classes that have too few images because some of their images cannot be read."""
    num_readable = {
        name: sum(written.counts[split, planned.label] for split in planned.pieces)
        for name, planned in plan.classes.items()
    }
    return sorted(name for name, count in num_readable.items() if count < min_images)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _write(output: str, name: str, data: bytes) -> None:
    storage.write_file(storage.join(output, name), data)


def remove_work(output: str) -> None:
    """Removes the folder of the files that are needed only until the commit."""
    storage.remove_tree(work_folder(output))


def remove_data_set(output: str, name: str) -> None:
    """Removes the files of a data set, finished or not. Its work folder stays."""
    remove_output(
        output,
        index.INFO_FILE,
        index.FEATURES_FILE,
        index.CLASSES_FILE,
        index.REJECTED_FILE,
        index.DUPLICATES_FILE,
        shards=_shards_pattern(name),
    )


def _shards_pattern(name: str) -> str:
    return rf"{re.escape(name)}-\w+\.(tfrecord-\d+-of-\d+|index\.parquet)"


def remove_output(output: str, info_file: str, *files: str, shards: str) -> None:
    """Removes the files of an output, and the files whose whole names match the pattern `shards`.

    The info file is removed first, so that an incomplete output never looks finished.
    """
    for file in (info_file, *files):
        storage.remove(storage.join(output, file))
    remove_shards(output, shards)


def remove_shards(output: str, pattern: str, *, keep: Collection[str] = ()) -> None:
    """Removes the files whose whole names match a pattern, except those to keep."""
    for info in storage.list_files(output):
        file = info.path.rpartition("/")[2]
        if re.fullmatch(pattern, file) and file not in keep:
            storage.remove(info.path)
