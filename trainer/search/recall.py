"""How many of the true neighbours an approximate index finds, and the setting that finds enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import faiss
import numpy as np

from trainer.search.exact import closest, exact
from trainer.search.faiss_index import propose, settings

NEIGHBOURS = 10
QUERIES = 1_000
ENOUGH = 0.999  # no higher setting is measured


@dataclasses.dataclass(frozen=True)
class Recall:
    """Recall@10 of an approximate index against exact search.

    Attributes:
      parameter: what was varied, "efSearch" or "nprobe".
      by_setting: its values, ascending, and the mean share of the 10 nearest that were found.
      target: what the setting must reach.
      num_queries: that were searched for; none was in the index then.
      num_rows: in the index then.
    """

    parameter: str
    by_setting: Mapping[int, float]
    target: float
    num_queries: int
    num_rows: int

    @property
    def setting(self) -> int:
        """The lowest that reaches the target; where none does, the best."""
        enough = [value for value, recall in self.by_setting.items() if recall >= self.target]
        return min(enough) if enough else max(self.by_setting, key=lambda v: self.by_setting[v])

    @property
    def reached(self) -> bool:
        """Whether the setting reaches the target."""
        return self.by_setting[self.setting] >= self.target


def measure(
    index: faiss.Index,
    vectors: np.ndarray,
    queries: np.ndarray,
    *,
    target: float,
    threads: int,
) -> Recall:
    """Recall of an hnsw or ivfpq index.

    vectors: float32 [N, D], its rows.
    queries: float32 [Q, D], Q at least 1, not among them: a row of the graph finds its neighbours
        more easily than an image that is new.

    A row as near as the tenth nearest counts as found, whichever of several equal ones it is.
    """
    _, true = exact(vectors, queries, NEIGHBOURS, threads=threads)
    k = true.shape[1]
    parameter, values = settings(index)
    found: dict[int, float] = {}
    for value in values:
        proposed = propose(index, queries, k, value, threads=threads)
        hits = 0
        for query, rows, farthest in zip(queries, proposed, true[:, -1], strict=True):
            _, distances = closest(vectors, query, rows[rows >= 0], k)
            hits += int(np.count_nonzero(distances <= farthest))
        found[value] = round(hits / true.size, 4)
        if found[value] >= ENOUGH:
            break
    return Recall(parameter, found, target, len(queries), len(vectors))
