"""Triplet losses by loops in float64, written from their definition and not from the code."""

import numpy as np


def distance(x: np.ndarray, y: np.ndarray, metric: str) -> float:
    if metric == "angular":
        return float(1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    squared = float(np.sum((x - y) ** 2))
    return squared if metric == "squared-L2" else squared**0.5


def hard(labels, embeddings, *, margin, metric, soft=False) -> float:
    """Mean over anchors with both: farthest positive, nearest negative."""
    x = np.asarray(embeddings, np.float64)
    terms = []
    for a, label in enumerate(labels):
        positives = [distance(x[a], x[p], metric) for p in others(labels, a, label, same=True)]
        negatives = [distance(x[a], x[n], metric) for n in others(labels, a, label, same=False)]
        if positives and negatives:
            gap = max(positives) - min(negatives)
            terms.append(np.logaddexp(0, gap) if soft else max(0.0, margin + gap))
    return float(np.mean(terms)) if terms else 0.0


def semihard(labels, embeddings, *, margin, metric) -> float:
    """Mean over ordered pairs: nearest negative beyond the positive, else the farthest negative."""
    x = np.asarray(embeddings, np.float64)
    terms = []
    for a, label in enumerate(labels):
        negatives = [distance(x[a], x[n], metric) for n in others(labels, a, label, same=False)]
        for p in others(labels, a, label, same=True):
            if negatives:
                reach = distance(x[a], x[p], metric)
                beyond = [d for d in negatives if d > reach]
                terms.append(max(0.0, margin + reach - min(beyond, default=max(negatives))))
    return float(np.mean(terms)) if terms else 0.0


def others(labels, anchor, label, *, same: bool) -> list[int]:
    return [i for i, other in enumerate(labels) if i != anchor and (other == label) == same]
