"""Confidence intervals, compared with a plain loop and with the statistics of means."""

import math

import numpy as np
import pytest

from tests.fixtures.retrieval.data import clustered, unbalanced
from trainer.retrieval.confidence import confidence_intervals
from trainer.retrieval.metrics import retrieval_metrics


def test_plain_loop():
    embeddings, labels = unbalanced()
    metrics = retrieval_metrics(embeddings, labels)
    labels = labels[metrics.queries]
    rng = np.random.default_rng(7)
    means = []
    num = len(metrics.class_labels)
    for _ in range(200):
        drawn = metrics.class_labels[rng.integers(num, size=num)]
        values = [metrics.of_queries["map_at_r"][labels == label] for label in drawn]
        means.append(np.concatenate(values).mean())
    expected = np.percentile(means, [2.5, 97.5])
    found = confidence_intervals(metrics, resamples=200, seed=7)
    assert found["map_at_r"] == pytest.approx(expected, rel=1e-12)
    assert set(found) == set(metrics.mean)


def test_the_same_seed_gives_the_same_and_a_smaller_share_a_narrower_interval():
    metrics = retrieval_metrics(*unbalanced())
    one, again = confidence_intervals(metrics), confidence_intervals(metrics)
    assert one == again
    other = confidence_intervals(metrics, seed=1)
    assert one["map_at_r"] != other["map_at_r"]
    low, high = one["map_at_r"]
    assert low < metrics.map_at_r < high
    narrow = confidence_intervals(metrics, share=0.5)["map_at_r"]
    assert low < narrow[0] < narrow[1] < high


def test_of_many_equal_classes_it_is_that_of_a_mean():
    metrics = retrieval_metrics(*clustered(0, [4] * 300, spread=1.0))
    values = metrics.of_classes["map_at_r"]
    error = values.std() / math.sqrt(len(values))
    low, high = confidence_intervals(metrics, resamples=4000)["map_at_r"]
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize("labels", [[], [1], [1, 1, 1], [1, 2, 2]])
def test_one_class_says_nothing(labels):
    metrics = retrieval_metrics(np.arange(2.0 * len(labels)).reshape(-1, 2), np.array(labels, int))
    assert all(map(math.isnan, confidence_intervals(metrics)["map_at_r"]))
