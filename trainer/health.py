"""Signs that training goes wrong, from the numbers of every loop."""

import numpy as np

ROWS = 256
# Differences of float32 embeddings below this share of their length are rounding.
ROUNDING = 1e-6


def spread(embeddings: np.ndarray) -> float:
    """How far embeddings [b, D] lie from their mean, beside how long they are."""
    x = _some(embeddings)
    length = np.sqrt(np.mean(np.sum(x**2, axis=1)))
    return float(np.sqrt(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1))) / length) if length else 0.0


def effective_rank(embeddings: np.ndarray) -> float:
    """x."""
    x = _some(embeddings)
    x = x - x.mean(axis=0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    squares = np.linalg.eigvalsh(gram)
    s = np.sqrt(np.maximum(squares, 0))
    if not s.sum():
        return 1.0
    p = s / s.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def _some(e):
    if len(e) > ROWS:
        e = e[np.linspace(0, len(e) - 1, ROWS).astype(int)]
    return e.astype(np.float64)
