"""An index on disk: index_info.json, written last, and the files of one generation that it names.

INDEX/index-00000.faiss       the FAISS index
INDEX/embeddings-00000.npy    of ivfpq, which holds only codes: float32 [N, D], mapped, not loaded
INDEX/rows-00000.parquet      source_id, split, label and class of each row
INDEX/left_out-00000.jsonl    images whose source id was taken by another embedding or class
INDEX/index_info.json         names the files, their sizes, the model, and what was measured

Whoever changes an index writes the files of the next generation, then index_info.json, then removes
the old ones: a process that is killed leaves the index as it was.
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

from trainer.search.faiss_index import held, kind_of
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
"""A row for each row of the index; null where it is not known."""

_ENDINGS = {"index": "faiss", "embeddings": "npy", "rows": "parquet", "left_out": "jsonl"}
_NAMES = "|".join(rf"{what}-\d{{5}}\.{ending}" for what, ending in _ENDINGS.items())
_OURS = re.compile(rf"({_NAMES}|{re.escape(INFO_FILE)})(\.[0-9a-f]{{32}}\.partial)?")


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """What index_info.json says.

    Attributes:
      directory: where the index lies.
      model: fingerprint of the model that made the embeddings.
      dim: length of an embedding.
      num_rows: images.
      kind: "flat", "hnsw" or "ivfpq".
      recall: what was measured of an approximate index, and how it is searched; None for flat.
      inputs: the embeddings that went in, in order: what was embedded, and how many images of it
        were added, were there already, or were left out.
      files: name of each file, and its bytes.
    """

    directory: str
    model: str
    dim: int
    num_rows: int
    kind: str
    recall: Recall | None
    inputs: Sequence[Mapping[str, Any]]
    files: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def path(self, what: str) -> str:
        """The file whose name begins with "index-" and so on; raises KeyError without one."""
        for name in self.files:
            if name.startswith(f"{what}-"):
                return storage.join(self.directory, name)
        raise KeyError(what)

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """What an index holds.

    Attributes:
      index: of FAISS.
      vectors: [N, D] float32; of flat and hnsw the memory of `index`.
      rows: ROWS_SCHEMA, [N].
    """

    index: faiss.Index
    vectors: np.ndarray
    rows: pa.Table


def is_finished(directory: str) -> bool:
    """Whether the directory holds an index."""
    return _INFO.is_in(directory)


def load_info(directory: str) -> IndexInfo:
    """Reads index_info.json; raises UsageError where there is no finished index."""
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
    """Reads an index, also while another process adds to it.

    Raises:
      UsageError: not finished, or a file that is missing or damaged.
    """
    info = load_info(directory)
    while True:
        try:
            return info, _contents(info)
        except FileNotFoundError as error:
            before, info = info, load_info(directory)
            if info == before:
                raise UsageError(f"{error.filename}: missing; build again") from error


def _contents(info: IndexInfo) -> Contents:
    for name, size in info.files.items():
        path = storage.join(info.directory, name)
        if storage.stat(path).size != size:
            raise UsageError(f"{path}: damaged, {size:,} bytes were written; build again")
    path = ""
    try:
        path = info.path("rows")
        with storage.open_read(path) as file:
            # No threads of Arrow's: they can outlive Python, and end it with an abort.
            rows = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
        rows.validate(full=True)
        path = info.path("index")
        with storage.open_read(path) as file:
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
        vectors = held(index)
        if vectors is None:
            path = info.path("embeddings")
            vectors = np.load(path, mmap_mode="r")
        if not (len(rows) == index.ntotal == len(vectors) == info.num_rows):
            raise ValueError("another number of rows than its info says")
        if (kind_of(index), index.d, vectors.shape[1]) != (info.kind, info.dim, info.dim):
            raise ValueError("another kind or dimension than its info says")
        if not rows.schema.equals(ROWS_SCHEMA):
            raise ValueError("other columns than its info says")
    except FileNotFoundError:
        raise
    except (*UNREADABLE, RuntimeError) as error:
        raise UsageError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return Contents(index, vectors, rows)


def require_ours(directory: str) -> None:
    """Raises UsageError for a folder with something else in it than an index, finished or not."""
    storage.require_local(directory, "index")
    if not storage.is_folder(directory):
        return
    others = {name for name in os.listdir(directory) if not _OURS.fullmatch(name)}
    if others - {LOCK_FILE} and not is_finished(directory):
        raise UsageError(
            f"index {directory}: not empty, and no index of tripletmill; choose another"
        )


@contextlib.contextmanager
def writing(directory: str) -> Iterator[None]:
    """Keeps other writers of this machine out; makes the folder.

    Raises:
      UsageError: another process is writing there.
    """
    storage.require_local(directory, "index")
    storage.make_folder(directory)
    with storage.exclusive(storage.join(directory, LOCK_FILE), f"index {directory}"):
        yield


def commit(info: IndexInfo, contents: Contents, left_out: Sequence[Mapping[str, Any]]) -> IndexInfo:
    """Puts an index in the place of the one that is there, if any; inside `writing`.

    Args:
      info: without its files.
      contents: what it holds.
      left_out: one entry for each line of left_out.jsonl.

    Returns:
      The info with its files.
    """
    present = [each.path.rpartition("/")[2] for each in storage.list_files(info.directory)]
    old = [name for name in present if _OURS.fullmatch(name) and name != INFO_FILE]
    generations = [int(name.partition("-")[2][:5]) for name in old if "-" in name]
    generation = max(generations, default=-1) + 1
    files: dict[str, int] = {}

    @contextlib.contextmanager
    def written(what: str) -> Iterator[Any]:
        name = f"{what}-{generation:05d}.{_ENDINGS[what]}"
        with storage.atomic_file(storage.join(info.directory, name)) as file:
            yield file
            files[name] = file.tell()

    with written("index") as file:
        faiss.write_index(contents.index, faiss.PyCallbackIOWriter(file.write))
    if held(contents.index) is None:
        with written("embeddings") as file:
            np.save(file, contents.vectors)
    with written("rows") as file:
        pq.write_table(contents.rows, file, use_dictionary=["split", "class"])
    with written("left_out") as file:
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
