"""Nearest neighbours by brute force in float64, without the project's code and FAISS."""

import numpy as np


def distances(vectors: np.ndarray, query: np.ndarray) -> list[float]:
    """Squared Euclidean distances, summed in Python and rounded to float32."""
    found = []
    for vector in vectors.tolist():
        total = np.sum([(a - b) ** 2 for a, b in zip(vector, query.tolist(), strict=True)])
        found.append(float(np.float32(total)))
    return found


def nearest(
    vectors: np.ndarray, query: np.ndarray, k: int, rows: list[int] | None = None
) -> list[tuple[int, float]]:
    """The k nearest of these rows (all by default), with distances; ties are in row order."""
    rows = list(range(len(vectors))) if rows is None else rows
    found = distances(vectors[rows], query)
    order = sorted(zip(found, rows, strict=True))
    return [(row, distance) for distance, row in order[:k]]
