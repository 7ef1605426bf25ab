"""The last step: sidecars become the index, and the data set is there.

dataset_info.json is written last; with it the data set is finished, without it it is not.
"""

import collections
import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing import index, tfds_layout
from preprocessing.errors import UsageError
from preprocessing.plan import Plan
from preprocessing.shards import Sidecar, read_sidecar
from preprocessing.sources import Rejected
from preprocessing.storage import atomic_file, write_file

WORK_FOLDER = ".work"
PLAN_FILE = "plan.json"
REASONS_SHOWN = 3


def commit(
    plan: Plan,
    *,
    output: str,
    name: str,
    settings: Mapping[str, Any],
    left_out: Iterable[Rejected],
    max_rejected_share: float,
) -> None:
    """Turns finished shards into a finished data set.

    Args:
      plan: which shards there are.
      output: folder of the data set.
      name: first part of the file names.
      settings: what decided the bytes; kept in dataset_info.json.
      left_out: what listing left out already.
      max_rejected_share: of the planned images, 0 to 1.

    Raises:
      UsageError: more images than that share were rejected, or all of a split's.
    """
    rejected = list(left_out)
    unreadable: list[Rejected] = []
    counts: collections.Counter[int] = collections.Counter()
    splits: dict[str, tfds_layout.SplitInfo] = {}
    for split, num_shards in plan.num_shards.items():
        lengths, num_bytes = [], 0
        with (
            atomic_file(os.path.join(output, index.index_file(name, split))) as file,
            pq.ParquetWriter(file, index.INDEX_SCHEMA) as writer,
        ):
            for shard in range(num_shards):
                sidecar = _sidecar(output, index.shard_file(name, split, shard, num_shards))
                writer.write_table(sidecar.rows)
                counts.update(sidecar.rows["label"].to_pylist())
                unreadable.extend(sidecar.rejected)
                lengths.append(len(sidecar.rows))
                num_bytes += sidecar.num_bytes
        splits[split] = tfds_layout.SplitInfo(shard_lengths=lengths, num_bytes=num_bytes)

    rejected = sorted([*rejected, *unreadable], key=lambda r: (r.source_id, r.reason))
    lines = [json.dumps(_rejected_row(r), ensure_ascii=False) + "\n" for r in rejected]
    write_file(os.path.join(output, index.REJECTED_FILE), "".join(lines).encode())
    _check_rejected(unreadable, plan, splits, max_rejected_share, output)

    planned = plan.classes.values()
    classes = pa.Table.from_pylist(
        [
            {"label": c.label, "name": c.name, "split": c.split, "count": counts[c.label]}
            for c in sorted(planned, key=lambda c: c.label)
        ],
        schema=index.CLASSES_SCHEMA,
    )
    with atomic_file(os.path.join(output, index.CLASSES_FILE)) as file:
        pq.write_table(classes, file)
    _write_json(os.path.join(output, index.FEATURES_FILE), tfds_layout.features_json())
    extra = {
        "format_version": index.FORMAT_VERSION,
        "input_fingerprint": plan.fingerprint,
        "num_classes": {
            split: sum(c.split == split and counts[c.label] > 0 for c in planned)
            for split in splits
        },
        "num_images": {split: sum(info.shard_lengths) for split, info in splits.items()},
        "num_rejected": len(rejected),
        "num_shards": dict(plan.num_shards),
        "settings": settings,
    }
    files = {index.shard_file(name, s, i, n) for s, n in plan.num_shards.items() for i in range(n)}
    files |= {index.index_file(name, split) for split in splits}
    _remove_files(output, name, keep=files)
    info = tfds_layout.dataset_info_json(name=name, splits=splits, extra=extra)
    _write_json(os.path.join(output, index.INFO_FILE), info)
    remove_work(output)


def _sidecar(output: str, file_name: str) -> Sidecar:
    sidecar = read_sidecar(os.path.join(output, WORK_FOLDER), file_name)
    if sidecar is None or not sidecar.is_whole(os.path.join(output, file_name)):
        raise UsageError(f"{output}: shard {file_name} is not whole; run the same command again")
    return sidecar


def _rejected_row(rejected: Rejected) -> dict[str, str]:
    return {
        "source_id": rejected.source_id,
        "class": rejected.class_name,
        "reason": rejected.reason,
    }


def _check_rejected(
    unreadable: list[Rejected],
    plan: Plan,
    splits: Mapping[str, tfds_layout.SplitInfo],
    max_rejected_share: float,
    output: str,
) -> None:
    planned = sum(plan.num_images.values())
    empty = [split for split, info in splits.items() if not sum(info.shard_lengths)]
    if len(unreadable) <= max_rejected_share * planned and not empty:
        return
    reasons = collections.Counter(r.reason for r in unreadable).most_common(REASONS_SHOWN)
    what = f"split {empty[0]} has no readable image, " if empty else ""
    raise UsageError(
        f"{what}{len(unreadable)} of {planned} images rejected"
        f" (at most {max_rejected_share:.0%} may be):"
        f" {'; '.join(f'{count} x {reason}' for reason, count in reasons)};"
        f" see {os.path.join(output, index.REJECTED_FILE)}"
    )


def _write_json(path: str, content: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def remove_work(output: str) -> None:
    """Removes the folder of what is needed until the commit."""
    shutil.rmtree(os.path.join(output, WORK_FOLDER), ignore_errors=True)


def remove_data_set(output: str, name: str) -> None:
    """Removes a data set of this name, finished or not, but for its plan.

    dataset_info.json goes first, so that a data set is never half there.
    """
    for file in (index.INFO_FILE, index.FEATURES_FILE, index.CLASSES_FILE, index.REJECTED_FILE):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(output, file))
    _remove_files(output, name, keep=set())
    work = os.path.join(output, WORK_FOLDER)
    for file in os.listdir(work):
        if file.endswith((".sidecar.parquet", ".progress", ".partial")):
            os.remove(os.path.join(work, file))


def _remove_files(output: str, name: str, *, keep: set[str]) -> None:
    """Removes shards and indices of a data set of this name."""
    ours = re.compile(rf"{re.escape(name)}-\w+\.(tfrecord-\d+-of-\d+|index\.parquet)")
    for file in os.listdir(output):
        if ours.fullmatch(file) and file not in keep:
            os.remove(os.path.join(output, file))
