"""Retrieval metrics by definition: all orders of tied rows, one query at a time."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np


def distance(a: np.ndarray, b: np.ndarray) -> np.float32:
    """The exact sum of squares, rounded to float32."""
    with np.errstate(over="ignore"):
        both = zip(a.tolist(), b.tolist(), strict=True)
        return np.float32(math.fsum((x - y) ** 2 for x, y in both))


def order(query: np.ndarray, gallery: np.ndarray, kept: Sequence[int]) -> list[tuple]:
    """(distance, row) of these rows, nearest first; ties are in row order."""
    return sorted((distance(query, gallery[row]), row) for row in kept)


def orders(pairs: Sequence[tuple]) -> Iterator[list[int]]:
    """Yields the rows in every order that agrees with their distances."""
    blocks = [
        [row for _, row in block] for _, block in itertools.groupby(pairs, key=lambda pair: pair[0])
    ]
    for choice in itertools.product(*(itertools.permutations(block) for block in blocks)):
        yield [row for block in choice for row in block]


def of_order(hits: Sequence[bool], cutoffs: Sequence[int]) -> list[float]:
    """Recall@K for each K, MAP@R, R-precision and reciprocal rank of one ranking."""
    total = sum(hits)
    found, summed = 0, 0.0
    for rank, hit in enumerate(hits[:total], start=1):
        if hit:
            found += 1
            summed += found / rank
    recall = [float(any(hits[:k])) for k in cutoffs]
    return [*recall, summed / total, found / total, 1 / (list(hits).index(True) + 1)]


def metrics(
    embeddings: np.ndarray,
    labels: Sequence[int],
    cutoffs: Sequence[int],
    *,
    groups: Sequence | None = None,
    gallery: tuple | None = None,
) -> dict[int, list[float]]:
    """Query -> metrics, for queries with a match.

    The gallery is (embeddings, labels, groups).
    """
    rows, kinds, places = gallery or (embeddings, labels, groups)
    found = {}
    for query, label in enumerate(labels):

        def left_out(row: int, query: int = query) -> bool:
            if gallery is None and row == query:
                return True
            same = places is not None and groups[query] and groups[query] == places[row]
            return bool(kinds[row] == labels[query] and same)

        kept = [row for row in range(len(rows)) if not left_out(row)]
        if not any(kinds[row] == label for row in kept):
            continue
        pairs = order(embeddings[query], rows, kept)
        each = [
            of_order([kinds[row] == label for row in rows_], cutoffs) for rows_ in orders(pairs)
        ]
        found[query] = np.mean(each, axis=0).tolist()
    return found
