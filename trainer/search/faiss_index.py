"""The kinds of FAISS index, and which rows each proposes for a query.

flat: the embeddings themselves. hnsw: a graph over them, Malkov, Yashunin, "Efficient and robust
approximate nearest neighbor search using Hierarchical Navigable Small World graphs", TPAMI 2020.
ivfpq: clusters of compressed embeddings, Jégou, Douze, Schmid, "Product quantization for nearest
neighbor search", TPAMI 2011.

The same vectors give the same index, byte for byte, on any number of cores.
"""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np

from trainer.search.exact import use_threads
from tripletmill.errors import UsageError

FLAT, HNSW, IVFPQ = KINDS = ("flat", "hnsw", "ivfpq")

FLAT_ROWS = 500_000  # at D = 128 about 10 ms for one query, 256 MB
HNSW_ROWS = 4_000_000  # at D = 128 about 3 GB in memory; ivfpq takes 40 bytes a row

LINKS = 32  # of a row in the graph; twice as many at the bottom
EF_CONSTRUCTION = 40
EF_SEARCH = (16, 32, 64, 128, 256, 512)

DIMS_A_CODE = 4  # of an embedding, in one byte
CODE_BITS = 8
ROWS_A_CLUSTER = 64  # that training looks at
NPROBE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# FAISS's own advice for k-means, with a centroid for each value of a code.
IVFPQ_LEAST = 39 * 2**CODE_BITS

LOOKED_AT = 100  # rows whose codes are nearest, at least: their order is only a guess
BLOCK = 10_000  # rows added at a time, for progress


def choose_kind(num_rows: int, dim: int) -> str:
    """The kind for a collection of this size."""
    if num_rows <= FLAT_ROWS:
        return FLAT
    return HNSW if num_rows <= HNSW_ROWS or dim % DIMS_A_CODE else IVFPQ


def require_possible(kind: str, num_rows: int, dim: int) -> None:
    """Raises UsageError where there can be no index of this kind."""
    if kind != IVFPQ:
        return
    if dim % DIMS_A_CODE:
        raise UsageError(f"kind ivfpq: needs a dimension divisible by {DIMS_A_CODE}, this is {dim}")
    if num_rows < IVFPQ_LEAST:
        raise UsageError(f"kind ivfpq: needs {IVFPQ_LEAST:,} images, there are {num_rows:,}")


def make(kind: str, vectors: np.ndarray, *, seed: int = 0) -> faiss.Index:
    """An index without rows; ivfpq is trained on some of the vectors, float32 [N, D]."""
    dim = vectors.shape[1]
    if kind == FLAT:
        return faiss.IndexFlatL2(dim)
    if kind == HNSW:
        index = faiss.IndexHNSWFlat(dim, LINKS)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index
    clusters = _clusters(len(vectors))
    index = faiss.IndexIVFPQ(faiss.IndexFlatL2(dim), dim, clusters, dim // DIMS_A_CODE, CODE_BITS)
    sample = min(len(vectors), max(ROWS_A_CLUSTER * clusters, IVFPQ_LEAST))
    rows = np.random.default_rng(seed).choice(len(vectors), sample, replace=False)
    index.cp.seed = index.pq.cp.seed = seed + 1
    faiss.omp_set_num_threads(1)  # sums in one order
    index.train(np.ascontiguousarray(vectors[np.sort(rows)]))
    return index


def _clusters(num_rows: int) -> int:
    """About 4 sqrt(N), a power of 2, each with rows enough to be trained."""
    wanted = 2 ** round(np.log2(4 * np.sqrt(num_rows)))
    return int(min(wanted, 2 ** int(np.log2(num_rows / 39))))


def add(index: faiss.Index, vectors: np.ndarray, on_progress: Callable[[int], None]) -> None:
    """Appends rows, float32 [M, D]; on_progress is called with how many are in."""
    # Threads link rows in whatever order they come to them, which the graph may depend on.
    faiss.omp_set_num_threads(1)
    for start in range(0, len(vectors), BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
        on_progress(min(start + BLOCK, len(vectors)))


def kind_of(index: faiss.Index) -> str:
    """Of an index that was read from a file; raises ValueError for another kind."""
    for kind, of in zip(
        KINDS, (faiss.IndexFlatL2, faiss.IndexHNSWFlat, faiss.IndexIVFPQ), strict=True
    ):
        if isinstance(index, of):
            return kind
    raise ValueError(f"a {type(index).__name__}")


def held(index: faiss.Index) -> np.ndarray | None:
    """The embeddings that an index holds, float32 [N, D]: its own memory; None for ivfpq."""
    kind = kind_of(index)
    if kind == IVFPQ:
        return None
    storage = index if kind == FLAT else faiss.downcast_index(index.storage)
    if not index.ntotal:
        return np.empty((0, index.d), np.float32)
    return faiss.rev_swig_ptr(storage.get_xb(), index.ntotal * index.d).reshape(-1, index.d)


def settings(index: faiss.Index) -> tuple[str, tuple[int, ...]]:
    """Name of what trades time for recall, and its values, ascending; none of flat."""
    kind = kind_of(index)
    if kind == IVFPQ:
        return "nprobe", tuple(value for value in NPROBE if value <= index.nlist)
    return ("efSearch", EF_SEARCH) if kind == HNSW else ("", ())


def propose(
    index: faiss.Index, queries: np.ndarray, k: int, setting: int, *, threads: int
) -> np.ndarray:
    """Rows among which the k nearest of each query mostly are: int64 [Q, k or more].

    hnsw and ivfpq only. -1 stands where too few were come across.
    """
    use_threads(threads, queries=len(queries))
    if kind_of(index) == HNSW:
        search = faiss.SearchParametersHNSW(efSearch=max(setting, k))
    else:
        search = faiss.SearchParametersIVF(nprobe=setting)
        k = min(max(LOOKED_AT, 10 * k), index.ntotal)
    return index.search(queries, k, params=search)[1]
