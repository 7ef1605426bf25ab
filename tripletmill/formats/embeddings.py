"""Embeddings on disk: Parquet shards, and embeddings_info.json, which is written last.

docs/embedding.md says what each file holds. Whatever is read here was compared with its checksum.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tripletmill.errors import UsageError
from tripletmill.formats.index import UNREADABLE
from tripletmill.formats.info_file import InfoFile
from tripletmill.storage import storage

FORMAT_VERSION = 1
INFO_FILE = "embeddings_info.json"
UNKNOWN_LABEL = -1  # in arrays; null on disk

_INFO = InfoFile(
    INFO_FILE,
    "embeddings",
    FORMAT_VERSION,
    make="make them with `python -m pipeline.embed`",
    again="remove the folder and embed again",
)


def shard_file(shard: int, num_shards: int) -> str:
    """File name of a shard."""
    return f"embeddings-{shard:05d}-of-{num_shards:05d}.parquet"


def schema(dim: int) -> pa.Schema:
    """Of every shard."""
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
    """A file of embeddings.

    Attributes:
      file: its name.
      rows: how many embeddings, 0 or more.
      num_bytes: of the file.
      crc32c: of the file.
    """

    file: str
    rows: int
    num_bytes: int
    crc32c: int


@dataclasses.dataclass(frozen=True)
class EmbeddingsInfo:
    """What embeddings_info.json says.

    Attributes:
      directory: where the embeddings lie.
      model: fingerprint of the model that made them.
      dim: length of an embedding.
      num_rows: embeddings in all shards.
      num_rejected: images left out, each in rejected.jsonl.
      shards: in order.
      input: what was embedded: its kind ("records" or "images"), fingerprint, and, of records, the
        data set's name and splits.
      settings: what decides the bytes, besides the input.
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
      info: of the whole collection.
      source_id: [N] str, the image's name.
      split: [N] str, None where there is none.
      label: [N] int64, UNKNOWN_LABEL where there is none.
      class_name: [N] str, None where there is none.
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
    """Whether the directory holds committed embeddings."""
    return _INFO.is_in(directory)


def load_info(directory: str) -> EmbeddingsInfo:
    """Reads embeddings_info.json; raises UsageError where there are no finished embeddings."""
    storage.require_supported(directory, "embeddings")
    with _INFO.reading(directory) as content:
        _INFO.require_version(directory, content["format"])
        shards = [Shard(**shard) for shard in content["shards"]]
        info = EmbeddingsInfo(
            directory=directory,
            **{
                field.name: content[field.name]
                for field in dataclasses.fields(EmbeddingsInfo)
                if field.name not in ("directory", "shards")
            },
            shards=shards,
        )
        if info.num_rows != sum(shard.rows for shard in shards):
            raise ValueError("num_rows is not the sum of its shards")
        return info


def info_json(info: EmbeddingsInfo) -> bytes:
    """Content of embeddings_info.json."""
    content = {"format": FORMAT_VERSION, **dataclasses.asdict(info)}
    del content["directory"]
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def load_embeddings(directory: str) -> Embeddings:
    """All embeddings of a directory; [0] and [0, D] where there are none.

    Raises:
      UsageError: not finished, or a shard that is missing or damaged.
    """
    info = load_info(directory)
    shards = [_arrays(info, shard) for shard in info.shards] or [_columns(info, _empty(info))]
    return Embeddings(info, *(np.concatenate(columns) for columns in zip(*shards, strict=True)))


def iter_shards(directory: str) -> Iterator[Embeddings]:
    """The embeddings of one shard after another, for collections that outgrow the memory.

    Raises:
      UsageError: as load_embeddings, of a shard when it is reached.
    """
    info = load_info(directory)
    for shard in info.shards:
        yield Embeddings(info, *_arrays(info, shard))


def make_table(
    *,
    source_id: Sequence[str],
    split: Sequence[str | None],
    label: Sequence[int | None],
    class_name: Sequence[str | None],
    embedding: np.ndarray,
) -> pa.Table:
    """A shard's rows.

    Args:
      source_id: [N], the images' names.
      split: [N].
      label: [N], 0 or more.
      class_name: [N].
      embedding: [N, D] float32, finite.

    Raises:
      ValueError: lengths that differ, another type, or numbers that are not finite.
    """
    if embedding.dtype != np.float32 or embedding.ndim != 2:
        raise ValueError(f"embedding: {embedding.dtype} {embedding.shape}, not float32 [N, D]")
    if not np.isfinite(embedding).all():
        raise ValueError("embedding: not finite")
    dim = embedding.shape[1]
    kinds = schema(dim)
    flat = pa.array(np.ascontiguousarray(embedding).reshape(-1))
    columns = {"source_id": source_id, "split": split, "label": label, "class": class_name}
    arrays = [pa.array(values, kinds.field(name).type) for name, values in columns.items()]
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=kinds.field("embedding").type))
    return pa.Table.from_arrays(arrays, schema=kinds)


def write_table(table: pa.Table, file: Any) -> None:
    """Writes a shard; the same rows and version of pyarrow give the same bytes."""
    # No float occurs twice: a dictionary of them would only cost time.
    pq.write_table(table, file, use_dictionary=["split", "label", "class"])


def _empty(info: EmbeddingsInfo) -> pa.Table:
    return schema(info.dim).empty_table()


def _arrays(info: EmbeddingsInfo, shard: Shard) -> tuple[np.ndarray, ...]:
    """The columns of a shard, [rows] each and [rows, D]."""
    path = storage.join(info.directory, shard.file)
    try:
        data = storage.read(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: missing; embed again with --overwrite") from error
    if len(data) != shard.num_bytes or google_crc32c.value(data) != shard.crc32c:
        raise UsageError(f"{path}: damaged (its checksum is wrong); embed again with --overwrite")
    try:
        # No threads of Arrow's: they can outlive Python, and end it with an abort.
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
        if not table.schema.equals(schema(info.dim)) or len(table) != shard.rows:
            raise ValueError("other columns or rows than its info says")
    except UNREADABLE as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    return _columns(info, table)


def _columns(info: EmbeddingsInfo, table: pa.Table) -> tuple[np.ndarray, ...]:
    texts = {
        name: np.array(table[name].to_pylist(), dtype=object)
        for name in ("source_id", "split", "class")
    }
    label = table["label"].fill_null(UNKNOWN_LABEL).to_numpy()
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    embedding = flat.reshape(len(table), info.dim)
    return texts["source_id"], texts["split"], label, texts["class"], embedding
