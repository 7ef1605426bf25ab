"""Confidence intervals of retrieval metrics."""

from __future__ import annotations

import numpy as np

from trainer.retrieval.metrics import RetrievalMetrics

_CHUNK = 2**22  # Numbers that are drawn at a time.


def confidence_intervals(
    metrics: RetrievalMetrics, *, share: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals, over classes, of each metric's mean over the queries.

    As many classes as there are, C, are drawn with replacement, each with all of its queries, and
    the mean over the drawn queries is taken. The interval holds the middle share of these means
    (Efron, Tibshirani: An Introduction to the Bootstrap, 1993, sections 8.6 and 13.3). Classes are
    drawn instead of images because images of a class are not independent: drawing images would make
    the intervals too narrow. The interval does not cover other sources of variation, such as the
    seed of the training.

    Args:
      metrics: result of `retrieval_metrics`.
      share: share of the means that the interval holds, between 0 and 1.
      resamples: number of resamples, 1 or more.
      seed: equal seeds give equal intervals.

    Returns:
      Name of the metric -> lower end, upper end; both NaN where there are fewer than two classes.
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
        rows = min(chunk, resamples - start)
        drawn = rng.integers(num, size=(rows, num)) + num * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * num).reshape(rows, num)
        totals = times.astype(np.float64) @ sums
        means.append(totals[:, :-1] / totals[:, -1:])
    tail = (1 - share) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
