"""Confidence intervals of retrieval metrics."""

from __future__ import annotations

import numpy as np

from trainer.retrieval.metrics import RetrievalMetrics

_CHUNK = 2**22  # numbers


def confidence_intervals(
    metrics: RetrievalMetrics, *, share: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Of each metric's mean over the queries: the percentile interval of a bootstrap over classes.

    As many classes as there are, C, are drawn with replacement, each with all of its queries, and
    the mean over these queries is taken; the interval holds the middle share of such means (Efron,
    Tibshirani: An Introduction to the Bootstrap, 1993, sections 8.6 and 13.3). Images of a class
    are not independent: to draw images would make intervals too narrow. What else moves a figure,
    such as the seed of training, is not in it.

    Args:
      metrics: of `retrieval_metrics`.
      share: between 0 and 1.
      resamples: drawn, 1 or more.
      seed: the same gives the same intervals.

    Returns:
      Name of the metric -> lower end, upper end; both NaN with fewer than two classes.
    """
    num = len(metrics.class_labels)
    names = list(metrics.mean)
    if num < 2:
        return dict.fromkeys(names, (float("nan"), float("nan")))
    counts = metrics.class_counts
    sums = np.stack([*(metrics.of_classes[name] * counts for name in names), counts], axis=1)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // num)
    means = []
    for start in range(0, resamples, chunk):
        here = min(chunk, resamples - start)
        drawn = rng.integers(num, size=(here, num)) + num * np.arange(here)[:, None]
        times = np.bincount(drawn.ravel(), minlength=here * num).reshape(here, num)
        totals = times.astype(np.float64) @ sums
        means.append(totals[:, :-1] / totals[:, -1:])
    tail = (1 - share) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
