"""A data set on disk: names of its files, and reading all of them but the shards.

docs/data-format.md documents the files. `python -m tripletmill describe DIR` summarizes a data set,
and `python -m tripletmill verify DIR` checks all its bytes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tripletmill.errors import UsageError
from tripletmill.formats import tfds_layout
from tripletmill.formats.info_file import InfoFile
from tripletmill.storage import storage

FORMAT_VERSION = 1
INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
CLASSES_FILE = "classes.parquet"
REJECTED_FILE = "rejected.jsonl"
DUPLICATES_FILE = "duplicates.jsonl"
WORK_FOLDER = ".work"

_INFO = InfoFile(
    INFO_FILE,
    "data_dir",
    FORMAT_VERSION,
    make="make it with `make preprocess`",
    again="remove the folder and preprocess again",
)

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
"""Columns of every index file; string columns whose names begin with x_ may follow."""
CLASSES_SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("name", pa.string()),
        ("split", pa.string()),
        ("count", pa.int64()),
    ]
)
"""Columns of classes.parquet, which has a row for each class and each split of the class."""

UNREADABLE = (OSError, ValueError, LookupError, pa.ArrowException)
"""Exceptions that reading a damaged Parquet file can raise."""

_CHUNK_BYTES = 2**20
_LOADED = ("shard", "offset", "length", "label", "height", "width")


def shard_file(name: str, split: str, shard: int, num_shards: int) -> str:
    """Returns the file name of a shard, which is counted from 0."""
    return f"{name}-{split}.tfrecord-{shard:05d}-of-{num_shards:05d}"


def index_file(name: str, split: str) -> str:
    """Returns the file name of a split's index."""
    return f"{name}-{split}.index.parquet"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The content of dataset_info.json.

    Attributes:
      directory: folder of the data set, local or in a bucket.
      name: first part of the file names.
      num_shards: number of shards by split.
      num_images: number of images by split.
      num_bytes: bytes of all shards by split.
      num_classes: number of classes with images by split.
      num_rejected: number of images and files that were left out.
      settings: everything besides the input that decides the bytes of the data set.
      input_fingerprint: hash of the list of input images.
      shard_lengths: number of images in each shard, by split.
      shard_crc32c: CRC-32C of each shard's file, by split; empty in older data sets.
      columns: names of the further columns of the index files, which begin with x_.
      group: the further column that says which images belong together; None if there is none.
      duplicates: number of groups of exact duplicates by kind.
      classes_left_out: names of the classes that were left out because they have too few images.
      classes_fallen_below: names of the classes that have too few images because some images could
        not be read; these classes are part of the data set.
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
    shard_lengths: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    shard_crc32c: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    columns: Sequence[str] = ()
    group: str | None = None
    duplicates: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classes_left_out: Sequence[str] = ()
    classes_fallen_below: Sequence[str] = ()

    def path(self, file: str) -> str:
        """Returns the path of a file of the data set."""
        return storage.join(self.directory, file)

    def shard_files(self, split: str) -> list[str]:
        """Returns the file names of a split's shards, in order."""
        count = self.num_shards[split]
        return [shard_file(self.name, split, shard, count) for shard in range(count)]


def is_finished(directory: str) -> bool:
    """Whether a folder holds a finished data set; the folder need not exist."""
    return _INFO.is_in(directory)


def load_info(directory: str) -> DatasetInfo:
    """Reads dataset_info.json.

    Raises:
      UsageError: the folder holds no finished data set, or the file is damaged or has another
        format version.
    """
    storage.require_supported(directory, "data_dir")
    with _INFO.reading(directory) as content:
        extra = tfds_layout.extra_of(content)
        _INFO.require_version(directory, extra["format_version"])
        splits = {split["name"]: split for split in content["splits"]}
        names = {field.name for field in dataclasses.fields(DatasetInfo)}
        info = DatasetInfo(
            directory=directory,
            name=content["name"],
            num_bytes={name: int(split["numBytes"]) for name, split in splits.items()},
            shard_lengths={name: [*map(int, of["shardLengths"])] for name, of in splits.items()},
            **{name: value for name, value in extra.items() if name in names},
        )
        if any({*splits} != {*of} for of in (info.num_shards, info.num_images, info.num_classes)):
            raise ValueError("its lists of splits differ")
        return info


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The records of a split, in file order; N is 0 if the split has no images.

    Attributes:
      info: the data set.
      split: name of the split.
      shards: paths of the shard files.
      shard: [N] int32, the record's shard as an index of `shards`.
      offset: [N] int64, offset in bytes of the record's framing in the shard.
      length: [N] int32, bytes of the record's payload.
      label: [N] int32, label of the image's class, which is the same in all splits.
      height: [N] int32, height of the image in pixels.
      width: [N] int32, width of the image in pixels.
    """

    info: DatasetInfo
    split: str
    shards: Sequence[str]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    label: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def column(self, name: str) -> pa.ChunkedArray:
        """Reads a column of the index file, [N].

        Raises:
          UsageError: there is no such column, or the file cannot be read.
        """
        known = [*INDEX_SCHEMA.names, *self.info.columns]
        if name not in known:
            raise UsageError(
                f"data_dir {self.info.directory}: no column {name!r}, only {', '.join(known)}"
            )
        return read_index(self.info, self.split, [name])[name]

    def class_names(self) -> dict[int, str]:
        """Reads the class names of all splits, by label.

        Raises:
          UsageError: the file cannot be read.
        """
        return {row["label"]: row["name"] for row in read_classes(self.info).to_pylist()}


def load_index(directory: str, split: str) -> DatasetIndex:
    """Loads the index of a split.

    Raises:
      UsageError: the folder holds no finished data set or no such split, the index cannot be read,
        a shard is missing, or the shards do not have the right number of bytes.
    """
    info = load_info(directory)
    if split not in info.num_shards:
        raise UsageError(
            f"data_dir {directory}: no split {split!r}, only {', '.join(info.num_shards)}"
        )
    table = read_index(info, split, _LOADED)
    sizes = file_sizes(directory)
    shards = info.shard_files(split)
    for shard in shards:
        if shard not in sizes:
            raise UsageError(f"data_dir {directory}: shard {shard} is missing")
    num_bytes = sum(sizes[shard] for shard in shards)
    if num_bytes != info.num_bytes[split]:
        raise UsageError(
            f"data_dir {directory}: the shards of {split} have {num_bytes:,} bytes, not"
            f" {info.num_bytes[split]:,}; preprocess again with --overwrite"
        )
    return DatasetIndex(
        info=info,
        split=split,
        shards=[info.path(shard) for shard in shards],
        **{name: table[name].to_numpy() for name in _LOADED},
    )


def file_sizes(directory: str) -> dict[str, int]:
    """Returns the size in bytes of each file directly in a folder, by name.

    The result is empty if there is no such folder.
    """
    # The folder is listed, because asking a bucket for each of thousands of shards takes minutes.
    files = storage.list_files(directory)
    return {info.path.rpartition("/")[2]: info.size for info in files}


def read_lines(path: str) -> Iterator[bytes]:
    """Yields the lines of a .jsonl file without line ends; none if the file is empty.

    Raises:
      OSError: the file is missing or cannot be read.
    """
    rest = b""
    with storage.open_read(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    if rest:
        yield rest


def read_index(info: DatasetInfo, split: str, columns: Sequence[str]) -> pa.Table:
    """Reads columns of a split's index, [N] each.

    Raises:
      UsageError: the file or one of the columns is missing or cannot be read.
    """
    return read_table(info.path(index_file(info.name, split)), columns)


def read_index_rows(path: str, rows: range, columns: Sequence[str]) -> pa.Table:
    """Reads columns of a range of rows of an index file, [len(rows)] each.

    Only the row groups that contain these rows are read.

    Raises:
      UsageError: the file or one of the columns is missing or cannot be read.
    """
    return read_table(path, columns, rows)


def read_classes(info: DatasetInfo) -> pa.Table:
    """Reads classes.parquet, a table of CLASSES_SCHEMA that is sorted by label.

    Raises:
      UsageError: the file or one of the columns is missing or cannot be read.
    """
    return read_table(info.path(CLASSES_FILE), CLASSES_SCHEMA.names)


def read_table(
    path: str, columns: Sequence[str] | None = None, rows: range | None = None
) -> pa.Table:
    """Reads a Parquet file: all columns or some, of all rows or of a range of rows.

    Raises:
      UsageError: the file or one of the columns is missing or cannot be read.
    """
    try:
        with storage.open_read(path) as file:
            # A thread of Arrow that still holds a Python file when Python ends would abort the
            # process, so no threads are used.
            parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
            if rows is None:
                table = parquet.read(columns, use_threads=False)
            else:
                table = _read_rows(parquet, columns, rows)
        table.validate(full=True)  # text that is not UTF-8 would fail later
    except UNREADABLE as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    return table


def _read_rows(parquet: pq.ParquetFile, columns: Sequence[str] | None, rows: range) -> pa.Table:
    groups = range(parquet.metadata.num_row_groups)
    sizes = [parquet.metadata.row_group(group).num_rows for group in groups]
    starts = [sum(sizes[:group]) for group in groups]
    needed = [g for g in groups if starts[g] < rows.stop and starts[g] + sizes[g] > rows.start]
    table = parquet.read_row_groups(needed, columns=columns, use_threads=False)
    return table.slice(rows.start - starts[needed[0]] if needed else 0, len(rows))
