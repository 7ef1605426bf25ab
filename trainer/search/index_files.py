"""An index on disk: index_info.json, and the files of the generation that it names.

INDEX/index-00000.faiss       the FAISS index
INDEX/embeddings-00000.npy    only of ivfpq, whose FAISS index holds codes: float32 [N, D], read by
                              memory mapping
INDEX/rows-00000.parquet      source_id, split, label and class of each row
INDEX/left_out-00000.jsonl    images that were left out because their source id is in the index with
                              another embedding, class or split
INDEX/index_info.json         the names and sizes of the files, the model, and the measured recall

The number in the names is the generation. A change of an index first writes the files of the next
generation, then index_info.json, and then removes the old files. So if the process is killed, the
index stays as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.search.faiss_index import kind_of, stored_vectors
from trainer.search.recall import Recall
from tripletmill.errors import UsageError
from tripletmill.formats.index import UNREADABLE
from tripletmill.formats.info_file import InfoFile
from tripletmill.storage import storage

FORMAT_VERSION = 1
INFO_FILE = "index_info.json"
LOCK_FILE = ".lock"
DISTANCE = "squared Euclidean"

_INFO = InfoFile(
    INFO_FILE,
    "index",
    FORMAT_VERSION,
    make="make it with `python -m trainer.search build`",
    again="build again with --overwrite",
)

ROWS_SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("class", pa.string()),
    ]
)
"""The columns of rows-*.parquet. A value that is not known is null."""

_ENDINGS = {"index": "faiss", "embeddings": "npy", "rows": "parquet", "left_out": "jsonl"}
_NAMES = "|".join(rf"{part}-\d{{5}}\.{ending}" for part, ending in _ENDINGS.items())
_OURS = re.compile(rf"({_NAMES}|{re.escape(INFO_FILE)})(\.[0-9a-f]{{32}}\.partial)?")


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """The content of index_info.json.

    Attributes:
      directory: folder of the index.
      model: fingerprint of the model that made the embeddings.
      dim: dimension D of an embedding.
      num_rows: number of images.
      kind: "flat", "hnsw" or "ivfpq".
      recall: measured recall and search setting of an approximate index. None for flat, and for an
        index with too few rows to measure.
      inputs: the collections of embeddings, in the order in which they were added. Each entry says
        what was embedded, and how many images were added, were there already, or were left out.
      files: the size of each file in bytes, by name.
    """

    directory: str
    model: str
    dim: int
    num_rows: int
    kind: str
    recall: Recall | None
    inputs: Sequence[Mapping[str, Any]]
    files: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def path(self, part: str) -> str:
        """Path of the "index", "embeddings", "rows" or "left_out" file. ValueError without one."""
        [name] = [name for name in self.files if name.startswith(f"{part}-")]
        return storage.join(self.directory, name)


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """The content of an index.

    Attributes:
      index: the FAISS index.
      vectors: float32 [N, D]. For flat and hnsw, this is a view of the memory of `index`.
      rows: table of ROWS_SCHEMA, [N].
    """

    index: faiss.Index
    vectors: np.ndarray
    rows: pa.Table


def is_finished(directory: str) -> bool:
    """Whether the directory holds a finished index."""
    return _INFO.is_in(directory)


def load_info(directory: str) -> IndexInfo:
    """Reads index_info.json. Raises UsageError if the directory holds no finished index."""
    storage.require_local(directory, "index")
    with _INFO.reading(directory) as content:
        _INFO.require_version(directory, content.pop("format"))
        del content["distance"]
        recall = content.pop("recall")
        if recall:
            by_setting = {int(key): value for key, value in recall.pop("by_setting").items()}
            recall = Recall(by_setting=by_setting, **recall)
        return IndexInfo(directory=directory, recall=recall, **content)


def read(directory: str) -> tuple[IndexInfo, Contents]:
    """Reads an index. Another process may add to the index at the same time.

    Raises:
      UsageError: the index is not finished, or a file is missing or damaged.
    """
    info = load_info(directory)
    while True:
        try:
            return info, _contents(info)
        except FileNotFoundError as error:
            # If another process has replaced this generation, the new one is read.
            before, info = info, load_info(directory)
            if info == before:
                raise UsageError(f"{error.filename}: missing; build again") from error


def _contents(info: IndexInfo) -> Contents:
    for name, size in info.files.items():
        path = storage.join(info.directory, name)
        if storage.stat(path).size != size:
            raise UsageError(f"{path}: damaged, it should have {size:,} bytes; build again")
    path = ""
    try:
        path = info.path("rows")
        with storage.open_read(path) as file:
            # Threads of Arrow can outlive Python and abort the process at its end.
            rows = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
        rows.validate(full=True)
        path = info.path("index")
        with storage.open_read(path) as file:
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
        vectors = stored_vectors(index)
        if vectors is None:
            path = info.path("embeddings")
            vectors = np.load(path, mmap_mode="r")
        if not (len(rows) == index.ntotal == len(vectors) == info.num_rows):
            raise ValueError(f"not the number of rows that {INFO_FILE} states")
        if (kind_of(index), index.d, vectors.shape[1]) != (info.kind, info.dim, info.dim):
            raise ValueError(f"not the kind or dimension that {INFO_FILE} states")
        if not rows.schema.equals(ROWS_SCHEMA):
            raise ValueError(f"not the columns {ROWS_SCHEMA.names}")
    except FileNotFoundError:
        raise
    except (*UNREADABLE, RuntimeError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return Contents(index, vectors, rows)


def require_ours(directory: str) -> None:
    """Raises UsageError for a folder that holds other files and no finished index.

    The leftovers of a build that was killed are not other files.
    """
    storage.require_local(directory, "index")
    if not storage.is_folder(directory):
        return
    others = {name for name in os.listdir(directory) if not _OURS.fullmatch(name)}
    if others - {LOCK_FILE} and not is_finished(directory):
        raise UsageError(
            f"index {directory}: not empty, and no index of tripletmill; choose another folder"
        )


def writing(directory: str) -> contextlib.AbstractContextManager[None]:
    """Makes the folder, and locks it against other writers on this machine.

    Raises:
      UsageError: another process is writing to the folder.
    """
    storage.require_local(directory, "index")
    storage.make_folder(directory)
    return storage.exclusive(storage.join(directory, LOCK_FILE), f"index {directory}")


def commit(info: IndexInfo, contents: Contents, left_out: Sequence[Mapping[str, Any]]) -> IndexInfo:
    """Writes an index, and replaces the one that is there, if any. Call this inside `writing`.

    Args:
      info: content of index_info.json. Its `files` are ignored.
      contents: content of the other files.
      left_out: the lines of left_out.jsonl.

    Returns:
      The info with the files that were written.
    """
    ours = filter(_OURS.fullmatch, os.listdir(info.directory))
    old = [name for name in ours if name != INFO_FILE]
    generations = [int(name.partition("-")[2][:5]) for name in old if "-" in name]
    generation = max(generations, default=-1) + 1
    files: dict[str, int] = {}

    @contextlib.contextmanager
    def new_file(part: str) -> Iterator[Any]:
        name = f"{part}-{generation:05d}.{_ENDINGS[part]}"
        with storage.atomic_file(storage.join(info.directory, name)) as file:
            yield file
            files[name] = file.tell()

    with new_file("index") as file:
        faiss.write_index(contents.index, faiss.PyCallbackIOWriter(file.write))
    if stored_vectors(contents.index) is None:
        with new_file("embeddings") as file:
            np.save(file, contents.vectors)
    with new_file("rows") as file:
        pq.write_table(contents.rows, file, use_dictionary=["split", "class"])
    with new_file("left_out") as file:
        for entry in left_out:
            file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
    info = dataclasses.replace(info, files=files)
    content = {"format": FORMAT_VERSION, "distance": DISTANCE, **dataclasses.asdict(info)}
    del content["directory"]
    data = (json.dumps(content, indent=2) + "\n").encode()
    storage.write_file(storage.join(info.directory, INFO_FILE), data)
    for name in old:
        storage.remove(storage.join(info.directory, name))
    return info
