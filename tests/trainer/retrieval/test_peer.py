"""The metrics equal those of pytorch-metric-learning where there are no ties."""

from pathlib import Path

import pytest

from benchmarks.evaluation.peers import example, our_metrics, peer_metrics
from benchmarks.evaluation.torch_child import NAMES
from benchmarks.processes import ROOT, peer_python

# These values are from `python -m benchmarks.evaluation --parts peers` with pytorch-metric-learning
# 2.9.0 on torch 2.13: AccuracyCalculator, k of the whole gallery, CustomKNN with the L2 distance of
# float64 rows.
PUBLISHED = {
    "all against all": [0.6853933, 0.5119558, 0.4156714, 0.7980660],
    "query against gallery": [0.6666667, 0.5060847, 0.3941861, 0.7771867],
}


def test_values_of_pytorch_metric_learning():
    check(PUBLISHED, 1e-6)


def test_pytorch_metric_learning_itself():
    python = peer_python("torch", Path(ROOT, ".peers"))
    if python is None:
        pytest.skip("not installed: make peers")
    found = peer_metrics(example(), python)
    check(found, 1e-6)
    for protocol, values in PUBLISHED.items():
        assert found[protocol] == pytest.approx(values, abs=1e-6)


def check(expected, tolerance):
    metrics = our_metrics(example())
    assert set(metrics) == set(expected)
    assert metrics["all against all"].num_without_match == 1
    for protocol, values in expected.items():
        found = [metrics[protocol].mean[name] for name in NAMES.values()]
        assert found == pytest.approx(values, abs=tolerance)
        assert 0.2 < min(values) < max(values) < 0.99
