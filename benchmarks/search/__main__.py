"""Measures each kind of index: build time, size, query time, and recall against exact search.

python -m benchmarks.search [--rows=100000] [--kinds flat hnsw ivfpq]

The vectors have unit length and lie around cluster centres; the noise is as long as the centres.
This is harder than the embeddings of a trained network. 1,000 queries are drawn from the same
distribution and are in no index. Recall is also shown for 1,000 queries that are rows of the index.
Times are per query: for one query alone, and for all 1,000 together.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from benchmarks.tables import Row, machine, print_columns
from benchmarks.timing import seconds_of
from trainer.search import faiss_index
from trainer.search.exact import closest, exact
from trainer.search.recall import NEIGHBOURS
from tripletmill.cli.arguments import Parser, positive

BATCH = 1_000  # queries that are searched together
ALONE = 50  # queries that are searched one after another


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", default=100_000, type=positive, metavar="N", help="vectors in the index (100000)")
    add("--dim", default=128, type=positive, metavar="D", help="dimensions of a vector (128)")
    add("--rows_a_cluster", default=20, type=positive, metavar="N", help="mean cluster size (20)")
    kinds = faiss_index.KINDS
    add("--kinds", default=[*kinds], choices=kinds, nargs="+", help="default: all")
    return parser.parse_args(arguments)


def clustered(rows: int, dim: int, clusters: int, *, seed: int) -> np.ndarray:
    """Draws vectors float32 [rows, dim] of unit length; the centres do not depend on the seed."""
    centres = np.random.default_rng(0).standard_normal((clusters, dim), np.float32)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, dim), np.float32)
    vectors += centres[rng.integers(0, clusters, rows)]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class BuiltIndex:
    """An index of one kind over the vectors.

    Attributes:
      setting: the name of the setting that trades speed for recall; empty for an exact index.
      values: the values of the setting, ascending; none for an exact index.
      build_seconds: the time to build the index.
    """

    def __init__(self, kind: str, vectors: np.ndarray) -> None:
        faiss_index.require_possible(kind, *vectors.shape)
        start = time.perf_counter()
        self._index = faiss_index.make(kind, vectors)
        faiss_index.add(self._index, vectors, lambda _: None)
        self.build_seconds = time.perf_counter() - start
        self.setting, self.values = faiss_index.settings(self._index)
        self._kind = kind
        self._vectors = vectors

    def megabytes(self) -> float:
        """Returns the size of the index as a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            faiss.write_index(self._index, str(path))
            return path.stat().st_size / 1e6

    def search(self, queries: np.ndarray, value: int, k: int = NEIGHBOURS) -> list[np.ndarray]:
        """Returns the distances of each query's neighbours, nearest first.

        Args:
          queries: float32 [N, D].
          value: of the setting; an exact index ignores it.
          k: how many neighbours.
        """
        if self._kind == faiss_index.FLAT:
            return list(exact(self._vectors, queries, k)[1])
        candidates = faiss_index.propose(self._index, queries, k, value)
        return [
            closest(self._vectors, query, rows[rows >= 0], k)[1]
            for query, rows in zip(queries, candidates, strict=True)
        ]


def measure(kind: str, vectors: np.ndarray, queries: np.ndarray, members: np.ndarray) -> None:
    """Prints the table of one kind of index.

    Args:
      kind: the kind of index.
      vectors: float32 [N, D], the rows of the index.
      queries: float32 [n, D], queries that are not in the index.
      members: float32 [m, D], queries that are rows of the index.
    """
    index = BuiltIndex(kind, vectors)
    # The distances of the last true neighbours. A member's nearest neighbour is the member itself.
    limits = exact(vectors, queries, NEIGHBOURS)[1][:, -1]
    member_limits = exact(vectors, members, NEIGHBOURS + 1)[1][:, -1]

    def recall(some: np.ndarray, limits: np.ndarray, value: int, skip: int) -> str:
        distances = index.search(some, value, NEIGHBOURS + skip)
        hits = sum(
            int((row[skip:] <= limit).sum()) for row, limit in zip(distances, limits, strict=True)
        )
        return f"{hits / (NEIGHBOURS * len(some)):.3f}"

    rows: list[Row] = []
    for value in index.values or (0,):
        together = seconds_of(partial(index.search, queries, value)) / len(queries)
        alone = [seconds_of(partial(index.search, query[None], value)) for query in queries[:ALONE]]
        recalls = recall(queries, limits, value, 0), recall(members, member_limits, value, 1)
        title = f"{index.setting} = {value}" if index.values else "exact"
        rows.append((title, [*recalls, 1e3 * statistics.median(alone), 1e3 * together]))
    title = f"{kind}: built in {index.build_seconds:.1f} s, {index.megabytes():.1f} MB"
    print_columns(title, ["recall@10", "of rows", "ms alone", "ms each"], rows)


def main() -> None:
    flags = parse()
    clusters = max(1, flags.rows // flags.rows_a_cluster)
    vectors = clustered(flags.rows, flags.dim, clusters, seed=1)
    queries = clustered(BATCH, flags.dim, clusters, seed=2)
    print(f"{flags.rows:,} vectors around {clusters:,} centres, D = {flags.dim} ({machine()})")
    members = vectors[np.random.default_rng(3).choice(flags.rows, BATCH)]
    for kind in flags.kinds:
        measure(kind, vectors, queries, members)


if __name__ == "__main__":
    main()
