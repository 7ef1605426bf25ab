"""Triplet losses as loops in float64, written from their definition and not from the code.

`bounds` allows for rounding: if two distances differ by less than the rounding, either may be
chosen.
"""

import numpy as np


def distance(x: np.ndarray, y: np.ndarray, metric) -> float:
    if callable(metric):
        return float(metric(x, y))
    if metric == "angular":
        lengths = np.linalg.norm(x) * np.linalg.norm(y)
        return float(1 - x @ y / lengths) if lengths else 1.0
    squared = float(np.sum((x - y) ** 2))
    return squared if metric == "squared-L2" else squared**0.5


def hard(labels, embeddings, *, margin, metric, soft=False) -> float:
    """The mean over anchors with both: the farthest positive and the nearest negative."""
    return loss(
        labels,
        embeddings,
        positive="hard",
        negative="hard",
        margin=margin,
        metric=metric,
        soft=soft,
    )


def semihard(labels, embeddings, *, margin, metric) -> float:
    """Mean over ordered pairs; negative: the nearest beyond the positive, else the farthest."""
    return loss(
        labels, embeddings, positive="all", negative="semihard", margin=margin, metric=metric
    )


def loss(
    labels, embeddings, *, positive, negative, margin, metric, soft=False, nonzero_mean=False
) -> float:
    """The mean over the triplets of these positives and negatives; 0 if there is none."""
    x = np.asarray(embeddings, np.float64)
    terms = []
    for a, label in enumerate(labels):
        positives = [distance(x[a], x[p], metric) for p in others(labels, a, label, same=True)]
        negatives = [distance(x[a], x[n], metric) for n in others(labels, a, label, same=False)]
        if positives and negatives:
            chosen = {"all": positives, "hard": [max(positives)], "easy": [min(positives)]}
            for near in chosen[positive]:
                for far in choose_negatives(near, negatives, negative, margin):
                    terms.append(term(near - far, margin, soft))
    if nonzero_mean:
        terms = [value for value in terms if value > 0]
    return float(np.mean(terms)) if terms else 0.0


def choose_negatives(reach, negatives, rule, margin) -> list[float]:
    beyond = [d for d in negatives if d > reach]
    if rule == "all":
        return negatives
    if rule == "hard":
        return [min(negatives)]
    if rule == "semihard":
        return [min(beyond, default=max(negatives))]
    return [d for d in (min(beyond),) if d < reach + margin] if beyond else []


def term(gap, margin, soft) -> float:
    return float(np.logaddexp(0, gap)) if soft else max(0.0, margin + gap)


def bounds(
    labels, embeddings, *, loss, margin, metric, epsilon=2.0**-23, soft=False
) -> tuple[float, float]:
    """The least and greatest value of the loss ("hard" or "semihard") under any rounding.

    Candidates are compared by |c|^2 - 2 a.c (angular: by the cosine), so of two candidates that
    differ by less than the rounding of these terms, either may be chosen.
    """
    x = np.asarray(embeddings, np.float64)
    low, high = [], []
    for a, label in enumerate(labels):

        def interval(c, a=a) -> tuple[float, float, float]:
            d = distance(x[a], x[c], metric)
            if metric == "angular":
                compared, size = d, 1.0
            elif callable(metric):
                compared, size = d, np.abs(x[a]).sum() + np.abs(x[c]).sum()
            else:
                compared = x[c] @ x[c] - 2 * x[a] @ x[c]
                size = x[c] @ x[c] + 2 * np.linalg.norm(x[a]) * np.linalg.norm(x[c])
            rounding = 8 * epsilon * size
            return compared - rounding, compared + rounding, d

        positives = [interval(p) for p in others(labels, a, label, same=True)]
        negatives = [interval(n) for n in others(labels, a, label, same=False)]
        if not positives or not negatives:
            continue
        for near, far in pairs(loss, positives, negatives):
            low.append(term(min(near) - max(far), margin, soft))
            high.append(term(max(near) - min(far), margin, soft))
    return (float(np.mean(low)), float(np.mean(high))) if low else (0.0, 0.0)


def pairs(loss, positives, negatives):
    """For each term: the distances that may be D+, and those that may be D-."""
    nearest = [d for low, _, d in negatives if low <= min(high for _, high, _ in negatives)]
    farthest = [d for _, high, d in negatives if high >= max(low for low, _, _ in negatives)]
    if loss == "hard":
        yield (
            [d for _, high, d in positives if high >= max(low for low, _, _ in positives)],
            nearest,
        )
        return
    for low, high, d in positives:
        surely = [n for n in negatives if n[0] > high]
        maybe = [n for n in negatives if n[1] > low]
        limit = min((n[1] for n in surely), default=np.inf)
        yield [d], [n[2] for n in maybe if n[0] <= limit] + ([] if surely else farthest)


def others(labels, anchor, label, *, same: bool) -> list[int]:
    return [i for i, other in enumerate(labels) if i != anchor and (other == label) == same]
