"""The data set on disk: its names, and what lies where."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing import tfds_layout
from preprocessing.errors import UsageError
from preprocessing.storage import require_local

FORMAT_VERSION = 1
INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
CLASSES_FILE = "classes.parquet"
REJECTED_FILE = "rejected.jsonl"

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("label", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("source_id", pa.string()),
        ("sha256", pa.binary(32)),
        ("source_sha256", pa.binary(32)),
    ]
)
CLASSES_SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("name", pa.string()),
        ("split", pa.string()),
        ("count", pa.int64()),
    ]
)


def shard_file(name: str, split: str, shard: int, num_shards: int) -> str:
    """File name of a shard."""
    return f"{name}-{split}.tfrecord-{shard:05d}-of-{num_shards:05d}"


def index_file(name: str, split: str) -> str:
    """File name of a split's index."""
    return f"{name}-{split}.index.parquet"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What dataset_info.json says.

    Attributes:
      directory: where the data set lies.
      name: first part of the file names.
      num_shards: by split.
      num_images: by split.
      num_bytes: by split, of all shards.
      num_classes: by split.
      num_rejected: images and files left out.
      settings: what decides the bytes of the data set.
      input_fingerprint: of the images listed.
    """

    directory: str
    name: str
    num_shards: Mapping[str, int]
    num_images: Mapping[str, int]
    num_bytes: Mapping[str, int]
    num_classes: Mapping[str, int]
    num_rejected: int
    settings: Mapping[str, Any]
    input_fingerprint: str


def is_finished(directory: str) -> bool:
    """Whether the directory holds a committed data set."""
    return os.path.isfile(os.path.join(directory, INFO_FILE))


def load_info(directory: str) -> DatasetInfo:
    """Reads dataset_info.json; raises UsageError where there is no finished data set."""
    require_local(directory, "data_dir")
    path = os.path.join(directory, INFO_FILE)
    if not os.path.isdir(directory):
        raise UsageError(f"data_dir {directory}: no such folder; make it with `make preprocess`")
    if not os.path.isfile(path):
        raise UsageError(
            f"data_dir {directory}: no finished data set (no {INFO_FILE}); finish it with"
            " `make preprocess`"
        )
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        extra = tfds_layout.extra_of(content)
        version = extra["format_version"]
        if version != FORMAT_VERSION:
            raise UsageError(
                f"data_dir {directory}: format version {version}, this is version"
                f" {FORMAT_VERSION}; preprocess again"
            )
        return DatasetInfo(
            directory=directory,
            name=content["name"],
            num_shards=extra["num_shards"],
            num_images=extra["num_images"],
            num_bytes={s["name"]: int(s["numBytes"]) for s in content["splits"]},
            num_classes=extra["num_classes"],
            num_rejected=extra["num_rejected"],
            settings=extra["settings"],
            input_fingerprint=extra["input_fingerprint"],
        )
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path}: not written by tripletmill ({error!r})") from error


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The records of one split, in file order.

    Attributes:
      info: the data set.
      split: name of the split.
      shards: paths of the shard files.
      shard: [N] int32, place in `shards`.
      offset: [N] int64, bytes to the record's framing.
      label: [N] int32, global over the splits.
    """

    info: DatasetInfo
    split: str
    shards: Sequence[str]
    shard: np.ndarray
    offset: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def column(self, name: str) -> pa.ChunkedArray:
        """A further column of the index file, [N]."""
        return _read_index(self.info, self.split, [name])[name]

    def class_names(self) -> dict[int, str]:
        """Class name by label, over all splits."""
        table = pq.read_table(os.path.join(self.info.directory, CLASSES_FILE))
        names = table["name"].to_pylist()
        return dict(zip(table["label"].to_pylist(), names, strict=True))


def load_index(directory: str, split: str) -> DatasetIndex:
    """Loads the index of a split; raises UsageError where the split or its files are missing."""
    info = load_info(directory)
    if split not in info.num_shards:
        raise UsageError(
            f"data_dir {directory}: no split {split!r}, only {', '.join(info.num_shards)}"
        )
    table = _read_index(info, split, ["shard", "offset", "label"])
    num_shards = info.num_shards[split]
    shards = [
        os.path.join(directory, shard_file(info.name, split, shard, num_shards))
        for shard in range(num_shards)
    ]
    for path in shards:
        if not os.path.isfile(path):
            raise UsageError(f"data_dir {directory}: shard {os.path.basename(path)} is missing")
    found = sum(os.path.getsize(path) for path in shards)
    if found != info.num_bytes[split]:
        raise UsageError(
            f"data_dir {directory}: the shards of {split} have {found:,} bytes, not"
            f" {info.num_bytes[split]:,}; preprocess again with --overwrite"
        )
    return DatasetIndex(
        info=info,
        split=split,
        shards=shards,
        shard=table["shard"].to_numpy(),
        offset=table["offset"].to_numpy(),
        label=table["label"].to_numpy(),
    )


def _read_index(info: DatasetInfo, split: str, columns: list[str]) -> pa.Table:
    path = os.path.join(info.directory, index_file(info.name, split))
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
