"""The metrics of pytorch-metric-learning, which defines the same without ties."""

from pathlib import Path

import pytest

from benchmarks.evaluation.peers import example, ours, theirs
from benchmarks.evaluation.torch_child import NAMES
from benchmarks.mining.processes import ROOT, interpreter

# By `python -m benchmarks.evaluation --parts peers` with pytorch-metric-learning 2.9.0 on torch
# 2.13: AccuracyCalculator, k of the whole gallery, CustomKNN with the L2 distance of float64 rows.
PUBLISHED = {
    "all against all": [0.6853933, 0.5119558, 0.4156714, 0.7980660],
    "query against gallery": [0.6666667, 0.5060847, 0.3941861, 0.7771867],
}


def test_values_of_pytorch_metric_learning():
    check(PUBLISHED, 1e-6)


def test_pytorch_metric_learning_itself():
    python = interpreter("torch", Path(ROOT, ".peers"))
    if python is None:
        pytest.skip("not installed: make peers")
    measured = theirs(example(), python)
    check(measured, 1e-6)
    for case, values in PUBLISHED.items():
        assert measured[case] == pytest.approx(values, abs=1e-6)


def check(expected, tolerance):
    metrics = ours(example())
    assert set(metrics) == set(expected)
    assert metrics["all against all"].num_without_match == 1
    for case, values in expected.items():
        measured = [metrics[case].mean[name] for name in NAMES.values()]
        assert measured == pytest.approx(values, abs=tolerance)
        assert 0.2 < min(values) < max(values) < 0.99
