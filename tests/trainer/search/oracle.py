"""Nearest neighbours by brute force in float64, apart from the code and from FAISS."""

import numpy as np


def distances(vectors: np.ndarray, query: np.ndarray) -> list[float]:
    """Squared Euclidean, rounded to float32, as Python sums them up."""
    found = []
    for vector in vectors.tolist():
        total = np.sum([(a - b) ** 2 for a, b in zip(vector, query.tolist(), strict=True)])
        found.append(float(np.float32(total)))
    return found


def nearest(
    vectors: np.ndarray, query: np.ndarray, k: int, rows: list[int] | None = None
) -> list[tuple[int, float]]:
    """The k of these rows (all by default) that are nearest, with distances; ties by row."""
    rows = list(range(len(vectors))) if rows is None else rows
    found = distances(vectors[rows], query)
    order = sorted(zip(found, rows, strict=True))
    return [(row, distance) for distance, row in order[:k]]
