"""Embeddings on disk: Parquet shards, and embeddings_info.json, which is written last.

docs/embedding.md documents the files. A shard is compared with its checksum whenever it is read.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tripletmill.errors import UsageError
from tripletmill.formats.index import UNREADABLE
from tripletmill.formats.info_file import InfoFile
from tripletmill.storage import storage

FORMAT_VERSION = 1
INFO_FILE = "embeddings_info.json"
UNKNOWN_LABEL = -1  # stands for null in the files

_INFO = InfoFile(
    INFO_FILE,
    "embeddings",
    FORMAT_VERSION,
    make="make them with `python -m pipeline.embed`",
    again="remove the folder and embed again",
)


def shard_file(shard: int, num_shards: int) -> str:
    """Returns the file name of a shard, which is counted from 0."""
    return f"embeddings-{shard:05d}-of-{num_shards:05d}.parquet"


def schema(dim: int) -> pa.Schema:
    """Returns the columns of every shard, for embeddings of `dim` values."""
    return pa.schema(
        [
            ("source_id", pa.string()),
            ("split", pa.string()),
            ("label", pa.int64()),
            ("class", pa.string()),
            ("embedding", pa.list_(pa.field("item", pa.float32(), nullable=False), dim)),
        ]
    )


@dataclasses.dataclass(frozen=True)
class Shard:
    """The description of a shard.

    Attributes:
      file: file name.
      rows: number of embeddings, 0 or more.
      num_bytes: bytes of the file.
      crc32c: CRC-32C of the file.
    """

    file: str
    rows: int
    num_bytes: int
    crc32c: int


@dataclasses.dataclass(frozen=True)
class EmbeddingsInfo:
    """The content of embeddings_info.json.

    Attributes:
      directory: folder of the embeddings, local or in a bucket.
      model: fingerprint of the model that computed the embeddings.
      dim: number of values in an embedding.
      num_rows: number of embeddings in all shards.
      num_rejected: number of images that were left out; each is in rejected.jsonl.
      shards: the shards, in order.
      input: the kind of input ("records" or "images"), its fingerprint, and for records the name
        and the splits of the data set.
      settings: everything besides the input that decides the bytes of the embeddings.
    """

    directory: str
    model: str
    dim: int
    num_rows: int
    num_rejected: int
    shards: Sequence[Shard]
    input: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings in memory, in file order.

    Attributes:
      info: the description of all shards, even if these embeddings are from one shard.
      source_id: [N] str, the name of the image.
      split: [N] str, the split of the image; None if the input has no splits.
      label: [N] int64, the label of the image's class; UNKNOWN_LABEL if it is not known.
      class_name: [N] str, the name of the image's class; None if it is not known.
      embedding: [N, D] float32, finite.
    """

    info: EmbeddingsInfo
    source_id: np.ndarray
    split: np.ndarray
    label: np.ndarray
    class_name: np.ndarray
    embedding: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def is_finished(directory: str) -> bool:
    """Whether a folder holds finished embeddings; the folder need not exist."""
    return _INFO.is_in(directory)


def load_info(directory: str) -> EmbeddingsInfo:
    """Reads embeddings_info.json.

    Raises:
      UsageError: the folder holds no finished embeddings, or the file is damaged or has another
        format version.
    """
    storage.require_supported(directory, "embeddings")
    with _INFO.reading(directory) as content:
        _INFO.require_version(directory, content["format"])
        del content["format"]
        shards = [Shard(**shard) for shard in content.pop("shards")]
        info = EmbeddingsInfo(directory=directory, shards=shards, **content)
        if info.num_rows != sum(shard.rows for shard in shards):
            raise ValueError("num_rows is not the sum of its shards")
        return info


def info_json(info: EmbeddingsInfo) -> bytes:
    """Returns the content of embeddings_info.json."""
    content = {"format": FORMAT_VERSION, **dataclasses.asdict(info)}
    del content["directory"]
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def load_embeddings(directory: str) -> Embeddings:
    """Loads all embeddings of a folder; the arrays are [0] and [0, D] if there are none.

    Raises:
      UsageError: the folder holds no finished embeddings, or a shard is missing or damaged.
    """
    info = load_info(directory)
    tables = [_read_shard(info, shard) for shard in info.shards]
    return _embeddings(info, pa.concat_tables([schema(info.dim).empty_table(), *tables]))


def iter_shards(directory: str) -> Iterator[Embeddings]:
    """Yields the embeddings of one shard after another, so that not all must fit in memory.

    Raises:
      UsageError: the folder holds no finished embeddings, or the next shard is missing or damaged.
    """
    info = load_info(directory)
    for shard in info.shards:
        yield _embeddings(info, _read_shard(info, shard))


def make_table(
    *,
    source_id: Sequence[str],
    split: Sequence[str | None],
    label: Sequence[int | None],
    class_name: Sequence[str | None],
    embedding: np.ndarray,
) -> pa.Table:
    """Makes the table of a shard, with N rows; N may be 0.

    Args:
      source_id: [N], names of the images.
      split: [N], splits of the images.
      label: [N], labels of the images' classes, 0 or more.
      class_name: [N], names of the images' classes.
      embedding: [N, D] float32, finite.

    Raises:
      ValueError: the lengths differ, or `embedding` has another type or shape or is not finite.
    """
    if embedding.dtype != np.float32 or embedding.ndim != 2:
        raise ValueError(f"embedding: {embedding.dtype} {embedding.shape}, not float32 [N, D]")
    if not np.isfinite(embedding).all():
        raise ValueError("embedding: not finite")
    dim = embedding.shape[1]
    columns = schema(dim)
    flat = pa.array(np.ascontiguousarray(embedding).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=columns.field("embedding").type)
    values = {"source_id": source_id, "split": split, "label": label, "class": class_name}
    return pa.table({**values, "embedding": vectors}, schema=columns)


def write_table(table: pa.Table, file: Any) -> None:
    """Writes a shard to a binary file; equal rows and versions of pyarrow give equal bytes."""
    # Floats hardly ever occur twice, so a dictionary of them would only cost time.
    pq.write_table(table, file, use_dictionary=["split", "label", "class"])


def _read_shard(info: EmbeddingsInfo, shard: Shard) -> pa.Table:
    path = storage.join(info.directory, shard.file)
    try:
        data = storage.read(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: missing; embed again with --overwrite") from error
    if len(data) != shard.num_bytes or google_crc32c.value(data) != shard.crc32c:
        raise UsageError(f"{path}: damaged (its checksum is wrong); embed again with --overwrite")
    try:
        # A thread of Arrow could outlive Python and abort the process, so no threads are used.
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
        if not table.schema.equals(schema(info.dim)) or len(table) != shard.rows:
            raise ValueError("other columns or rows than its info says")
    except UNREADABLE as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    return table


def _embeddings(info: EmbeddingsInfo, table: pa.Table) -> Embeddings:
    return Embeddings(
        info,
        source_id=table["source_id"].to_numpy(),
        split=table["split"].to_numpy(),
        label=table["label"].fill_null(UNKNOWN_LABEL).to_numpy(),
        class_name=table["class"].to_numpy(),
        embedding=pc.list_flatten(table["embedding"]).to_numpy().reshape(len(table), info.dim),
    )
