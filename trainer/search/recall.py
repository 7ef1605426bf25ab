"""The recall of an approximate index, and the search setting that reaches a wanted recall."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import faiss
import numpy as np

from trainer.search.exact import closest, exact
from trainer.search.faiss_index import propose, settings

NEIGHBOURS = 10
QUERIES = 1_000
ENOUGH = 0.999  # once a setting has this recall, no higher setting is measured


@dataclasses.dataclass(frozen=True)
class Recall:
    """Recall@10 of an approximate index against exact search.

    Attributes:
      parameter: the FAISS parameter that was varied, "efSearch" or "nprobe".
      by_setting: recall by value of the parameter, values ascending. Recall is the mean share, 0 to
        1, of the 10 nearest rows that were found.
      target: recall that the setting has to reach, in (0, 1].
      num_queries: number of queries. None of them was in the index at that time.
      num_rows: number of rows that were in the index at that time.
    """

    parameter: str
    by_setting: Mapping[int, float]
    target: float
    num_queries: int
    num_rows: int

    @property
    def setting(self) -> int:
        """The lowest setting that reaches the target, or the best one if none does."""
        enough = [value for value, recall in self.by_setting.items() if recall >= self.target]
        return min(enough) if enough else max(self.by_setting, key=lambda v: self.by_setting[v])

    @property
    def reached(self) -> bool:
        """Whether the setting reaches the target."""
        return self.by_setting[self.setting] >= self.target


def measure(
    index: faiss.Index, vectors: np.ndarray, queries: np.ndarray, *, target: float
) -> Recall:
    """Measures the recall of an hnsw or ivfpq index.

    vectors: float32 [N, D], the rows of the index.
    queries: float32 [Q, D], Q at least 1. They should not be rows of the index, since a row of the
        graph finds its neighbours more easily than a new image does.

    A row counts as found if it is as near as the tenth nearest row, or nearer. So it does not
    matter which of several rows at one distance is found.
    """
    _, true_distances = exact(vectors, queries, NEIGHBOURS)
    k = true_distances.shape[1]
    parameter, values = settings(index)
    recall: dict[int, float] = {}
    for value in values:
        proposed = propose(index, queries, k, value)
        hits = 0
        for query, rows, farthest in zip(queries, proposed, true_distances[:, -1], strict=True):
            _, distances = closest(vectors, query, rows[rows >= 0], k)
            hits += int(np.count_nonzero(distances <= farthest))
        recall[value] = round(hits / true_distances.size, 4)
        if recall[value] >= ENOUGH:
            break
    return Recall(parameter, recall, target, len(queries), len(vectors))
