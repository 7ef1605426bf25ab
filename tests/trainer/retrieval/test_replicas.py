"""Replicas and workers share the queries, and each has the complete result."""

import numpy as np
import pytest

from tests.fixtures.processes import results, workers
from tests.fixtures.retrieval.data import unbalanced
from trainer.retrieval.metrics import retrieval_metrics
from trainer.retrieval.neighbours import nearest_neighbours

MODULE = "tests.fixtures.retrieval.replicas"


@pytest.fixture(scope="module")
def alone():
    embeddings, labels = unbalanced()
    embeddings[20:30] = embeddings[5]
    rows, distances = nearest_neighbours(embeddings, 7)
    of_queries = retrieval_metrics(embeddings, labels).of_queries
    return {"rows": rows, "distances": distances, **of_queries}


def check(result, alone):
    assert set(result) == set(alone)
    for name, values in alone.items():
        np.testing.assert_array_equal(result[name], values, err_msg=name)


def test_three_replicas(alone):
    check(results(MODULE, 3), alone)


def test_two_workers(alone):
    for result in workers(2, MODULE, "workers"):
        check(result, alone)
