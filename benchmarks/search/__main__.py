"""The kinds of index: time to build, size, time of a query, and recall against exact search.

python -m benchmarks.search [--rows=100000] [--kinds flat hnsw ivfpq]

Vectors of unit length around cluster centres, with as much noise as the centres are long: harder
than the embeddings of a trained network. The queries are drawn alike and are in no index.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np

from benchmarks.timing import machine, print_columns
from preprocessing.arguments import Parser, positive
from trainer.search import approximate
from trainer.search.nearest import available_cores, closest, exact
from trainer.search.recall import NEIGHBOURS

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
    kinds = approximate.KINDS
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


def measure(kind: str, vectors: np.ndarray, queries: np.ndarray, true: np.ndarray) -> None:
    """Prints a table of one kind; `true` is the distance of each query's last neighbour, [Q]."""
    approximate.require_possible(kind, *vectors.shape)
    start = time.perf_counter()
    index = approximate.make(kind, vectors)
    approximate.add(index, vectors, lambda _: None)
    build = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        faiss.write_index(index, str(path))
        size = path.stat().st_size / 1e6
    title = f"{kind}: built in {build:.1f} s, {size:.1f} MB"

    def search(some: np.ndarray, setting: int) -> list[np.ndarray]:
        if kind == approximate.FLAT:
            return list(exact(vectors, some, NEIGHBOURS, threads=available_cores())[1])
        proposed = approximate.propose(index, some, NEIGHBOURS, setting, threads=available_cores())
        return [
            closest(vectors, query, rows[rows >= 0], NEIGHBOURS)[1]
            for query, rows in zip(some, proposed, strict=True)
        ]

    name, values = approximate.settings(index)
    rows: list[tuple[str, list[float]]] = []
    for value in values or (0,):
        found = search(queries, value)
        hits = sum(int((each <= last).sum()) for each, last in zip(found, true, strict=True))
        recall = hits / (NEIGHBOURS * len(queries))
        batch = timed(lambda value=value: search(queries, value)) / len(queries)
        alone = [
            timed(lambda query=query, value=value: search(query[None], value))
            for query in queries[:ALONE]
        ]
        label = f"{name} = {value}" if values else "exact"
        rows.append((label, [round(recall, 3), 1e3 * statistics.median(alone), 1e3 * batch]))
    print_columns(title, ["recall@10", "ms alone", "ms of 1000"], rows)


def main() -> None:
    flags = parse()
    clusters = max(1, flags.rows // flags.rows_a_cluster)
    vectors = clustered(flags.rows, flags.dim, clusters, seed=1)
    queries = clustered(BATCH, flags.dim, clusters, seed=2)
    print(f"{flags.rows:,} vectors around {clusters:,} centres, D = {flags.dim} ({machine()})")
    _, distances = exact(vectors, queries, NEIGHBOURS, threads=available_cores())
    for kind in flags.kinds:
        measure(kind, vectors, queries, distances[:, -1])


if __name__ == "__main__":
    main()
