"""The kinds of index: time to build, size, time of a query, and recall against exact search.

python -m benchmarks.search [--rows=100000] [--kinds flat hnsw ivfpq]

Vectors of unit length around cluster centres, with as much noise as the centres are long: harder
than the embeddings of a trained network. 1,000 queries are drawn alike and are in no index; for
1,000 rows of the index recall is shown as well. Times of a query alone, and of each of all 1,000.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from benchmarks.timing import machine, print_columns
from trainer.search import faiss_index
from trainer.search.exact import available_cores, closest, exact
from trainer.search.recall import NEIGHBOURS
from tripletmill.cli.arguments import Parser, positive

BATCH = 1_000  # queries, all at once
ALONE = 50  # queries, one after another


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", default=100_000, type=positive, metavar="N", help="in the index (100000)")
    add("--dim", default=128, type=positive, metavar="D", help="of an embedding (128)")
    add("--rows_a_cluster", default=20, type=positive, metavar="N", help="on average (20)")
    kinds = faiss_index.KINDS
    add("--kinds", default=[*kinds], choices=kinds, nargs="+", help="all without it")
    return parser.parse_args(arguments)


def clustered(rows: int, dim: int, clusters: int, *, seed: int) -> np.ndarray:
    """Float32 [rows, dim], unit length; the centres do not depend on the seed."""
    centres = np.random.default_rng(0).standard_normal((clusters, dim), np.float32)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, dim), np.float32)
    vectors += centres[rng.integers(0, clusters, rows)]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(kind: str, vectors: np.ndarray, queries: np.ndarray, held: np.ndarray) -> None:
    """Prints a table of one kind, for queries that are in no index and for some that are held."""
    faiss_index.require_possible(kind, *vectors.shape)
    start = time.perf_counter()
    index = faiss_index.make(kind, vectors)
    faiss_index.add(index, vectors, lambda _: None)
    build = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        faiss.write_index(index, str(path))
        size = path.stat().st_size / 1e6
    threads = available_cores()
    last = exact(vectors, queries, NEIGHBOURS, threads=threads)[1][:, -1]
    held_last = exact(vectors, held, NEIGHBOURS + 1, threads=threads)[1][:, -1]
    title = f"{kind}: built in {build:.1f} s, {size:.1f} MB"

    def search(some: np.ndarray, setting: int, k: int = NEIGHBOURS) -> list[np.ndarray]:
        """Distances of each one's neighbours."""
        if kind == faiss_index.FLAT:
            return list(exact(vectors, some, k, threads=threads)[1])
        proposed = faiss_index.propose(index, some, k, setting, threads=threads)
        return [
            closest(vectors, query, rows[rows >= 0], k)[1]
            for query, rows in zip(some, proposed, strict=True)
        ]

    def recall(some: np.ndarray, last: np.ndarray, setting: int, itself: int) -> str:
        found = search(some, setting, NEIGHBOURS + itself)
        hits = sum(int((each[itself:] <= to).sum()) for each, to in zip(found, last, strict=True))
        return f"{hits / (NEIGHBOURS * len(some)):.3f}"

    name, values = faiss_index.settings(index)
    rows: list[tuple[str, list[float | str | None]]] = []
    for value in values or (0,):
        batch = timed(partial(search, queries, value)) / len(queries)
        alone = [timed(partial(search, query[None], value)) for query in queries[:ALONE]]
        shares = [recall(queries, last, value, 0), recall(held, held_last, value, 1)]
        label = f"{name} = {value}" if values else "exact"
        rows.append((label, [*shares, 1e3 * statistics.median(alone), 1e3 * batch]))
    print_columns(title, ["recall@10", "of rows", "ms alone", "ms each"], rows)


def main() -> None:
    flags = parse()
    clusters = max(1, flags.rows // flags.rows_a_cluster)
    vectors = clustered(flags.rows, flags.dim, clusters, seed=1)
    queries = clustered(BATCH, flags.dim, clusters, seed=2)
    print(f"{flags.rows:,} vectors around {clusters:,} centres, D = {flags.dim} ({machine()})")
    held = vectors[np.random.default_rng(3).choice(flags.rows, BATCH)]
    for kind in flags.kinds:
        measure(kind, vectors, queries, held)


if __name__ == "__main__":
    main()
