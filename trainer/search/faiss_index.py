"""The three kinds of FAISS index, and the rows that each kind proposes for a query.

flat: the embeddings themselves.
hnsw: a graph of the embeddings (Malkov, Yashunin: "Efficient and robust approximate nearest
neighbor search using Hierarchical Navigable Small World graphs", TPAMI 2020).
ivfpq: clusters of compressed embeddings (Jégou, Douze, Schmid: "Product quantization for nearest
neighbor search", TPAMI 2011).

Equal vectors give an equal index, byte for byte, on any number of cores.
"""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np

from trainer.search.exact import use_threads
from tripletmill.errors import UsageError

FLAT, HNSW, IVFPQ = KINDS = ("flat", "hnsw", "ivfpq")

# By default, an index is flat up to FLAT_ROWS rows, and hnsw up to HNSW_ROWS rows.
FLAT_ROWS = 500_000  # at D = 128, one query takes about 10 ms, and the index 256 MB
HNSW_ROWS = 4_000_000  # at D = 128, about 3 GB of memory; ivfpq takes 40 bytes a row

LINKS = 32  # of each row in the graph; twice that number in the lowest layer
EF_CONSTRUCTION = 40
EF_SEARCH = (16, 32, 64, 128, 256, 512)

DIMS_A_CODE = 4  # dimensions of an embedding that are compressed to one code
CODE_BITS = 8
ROWS_A_CLUSTER = 64  # rows that training uses for each cluster
NPROBE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROWS_A_CENTROID = 39  # FAISS advises at least this number of rows for each k-means centroid
IVFPQ_LEAST = ROWS_A_CENTROID * 2**CODE_BITS  # rows; each value of a code has a centroid

# The order of compressed embeddings is inexact, so ivfpq proposes at least this number of rows.
FEWEST_PROPOSED = 100
BLOCK = 10_000  # rows that are added between two reports of progress


def choose_kind(num_rows: int, dim: int) -> str:
    """The default kind of index for this number of rows and this dimension."""
    if num_rows <= FLAT_ROWS:
        return FLAT
    return HNSW if num_rows <= HNSW_ROWS or dim % DIMS_A_CODE else IVFPQ


def require_possible(kind: str, num_rows: int, dim: int) -> None:
    """Raises UsageError if an index of this kind cannot be built of these embeddings."""
    if kind != IVFPQ:
        return
    if dim % DIMS_A_CODE:
        raise UsageError(f"kind ivfpq: needs a dimension divisible by {DIMS_A_CODE}, this is {dim}")
    if num_rows < IVFPQ_LEAST:
        raise UsageError(f"kind ivfpq: needs {IVFPQ_LEAST:,} images, there are {num_rows:,}")


def make(kind: str, vectors: np.ndarray) -> faiss.Index:
    """An index without rows. An ivfpq index is trained on some of the vectors, float32 [N, D]."""
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
    rows = np.random.default_rng(0).choice(len(vectors), sample, replace=False)
    index.cp.seed = index.pq.cp.seed = 1
    faiss.omp_set_num_threads(1)  # several threads would sum in varying order
    index.train(np.ascontiguousarray(vectors[np.sort(rows)]))
    return index


def _clusters(num_rows: int) -> int:
    """The number of clusters: a power of 2 near 4 sqrt(N), with enough rows to train each one."""
    wanted = 2 ** round(np.log2(4 * np.sqrt(num_rows)))
    return int(min(wanted, 2 ** int(np.log2(num_rows / ROWS_A_CENTROID))))


def add(index: faiss.Index, vectors: np.ndarray, on_progress: Callable[[int], None]) -> None:
    """Appends rows, float32 [M, D]. Calls on_progress with the number of rows added so far."""
    # Several threads would link rows in varying order, and the graph may depend on the order.
    faiss.omp_set_num_threads(1)
    for start in range(0, len(vectors), BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
        on_progress(min(start + BLOCK, len(vectors)))


def kind_of(index: faiss.Index) -> str:
    """The kind of an index: one of KINDS. Raises ValueError for any other FAISS index."""
    kinds = {faiss.IndexFlatL2: FLAT, faiss.IndexHNSWFlat: HNSW, faiss.IndexIVFPQ: IVFPQ}
    if type(index) not in kinds:
        raise ValueError(f"a {type(index).__name__}")
    return kinds[type(index)]


def stored_vectors(index: faiss.Index) -> np.ndarray | None:
    """The embeddings in an index, float32 [N, D], as a view of its memory. None for ivfpq."""
    kind = kind_of(index)
    if kind == IVFPQ:
        return None
    storage = index if kind == FLAT else faiss.downcast_index(index.storage)
    if not index.ntotal:
        return np.empty((0, index.d), np.float32)
    return faiss.rev_swig_ptr(storage.get_xb(), index.ntotal * index.d).reshape(-1, index.d)


def settings(index: faiss.Index) -> tuple[str, tuple[int, ...]]:
    """The FAISS parameter that trades time for recall, and its values, ascending.

    A flat index has none: the result is ("", ()).
    """
    kind = kind_of(index)
    if kind == IVFPQ:
        return "nprobe", tuple(value for value in NPROBE if value <= index.nlist)
    return ("efSearch", EF_SEARCH) if kind == HNSW else ("", ())


def propose(index: faiss.Index, queries: np.ndarray, k: int, setting: int) -> np.ndarray:
    """Rows that probably include the k nearest rows of each query: int64 [Q, k or more].

    This is for hnsw and ivfpq. If FAISS came across too few rows, the rest is filled with -1.
    """
    use_threads(len(queries))
    if kind_of(index) == HNSW:
        search = faiss.SearchParametersHNSW(efSearch=max(setting, k))
    else:
        search = faiss.SearchParametersIVF(nprobe=setting)
        k = min(max(FEWEST_PROPOSED, 10 * k), index.ntotal)
    return index.search(queries, k, params=search)[1]
