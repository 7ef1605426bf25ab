"""Exact search compared with brute force: order, distances, ties and rounding."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.embedded import unit_vectors
from tests.fixtures.search import oracle
from trainer.search import exact
from tripletmill.errors import UsageError


def pairs(vectors, queries, k):
    rows, distances = exact.exact(vectors, queries, k)
    return [
        list(zip(*each, strict=True))
        for each in zip(rows.tolist(), distances.tolist(), strict=True)
    ]


def test_by_hand():
    vectors = np.array([[1, 0], [0, 1], [-1, 0], [0.6, 0.8], [0, 1]], np.float32)
    rows, distances = exact.exact(vectors, vectors[1:2], 9)
    assert rows.tolist() == [[1, 4, 3, 0, 2]]
    np.testing.assert_allclose(distances, [[0, 0, 0.4, 2, 2]], rtol=1e-6)
    assert rows.dtype == np.int64
    assert distances.dtype == np.float32


# The numbers of queries are one, few, and so many that several threads are used.
@pytest.mark.parametrize("num_queries", [1, 7, 64])
@pytest.mark.parametrize("k", [1, 10, 150])
def test_random(num_queries, k):
    vectors = unit_vectors(400, 12)
    queries = unit_vectors(num_queries, 12, seed=1)
    assert pairs(vectors, queries, k) == [oracle.nearest(vectors, q, k) for q in queries]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ties_are_in_the_order_of_rows(data):
    """Vectors come from a few, so there are copies and exactly equal distances."""
    corners = [[1, 0, 0], [0, 1, 0], [0, 0, -1], [-1, 0, 0], [0, 0, 0]]
    picks = data.draw(st.lists(st.integers(0, 4), min_size=0, max_size=90))
    vectors = np.array([corners[pick] for pick in picks], np.float32).reshape(-1, 3)
    queries = np.array(data.draw(st.lists(st.sampled_from(corners), max_size=30)), np.float32)
    k = data.draw(st.integers(0, 100))
    expected = [oracle.nearest(vectors, query, k) for query in queries]
    assert pairs(vectors, queries.reshape(-1, 3), k) == expected


@pytest.mark.parametrize("k", [5, 150])
def test_all_alike(k):
    """A collapsed network gives equal embeddings; the first rows come first in any input order."""
    vectors = np.repeat(unit_vectors(1, 128), 400, axis=0)
    shuffled = np.random.default_rng(0).permutation(400)
    rows, distances = exact.closest(vectors, vectors[0], shuffled, k)
    assert (rows.tolist(), distances.tolist()) == ([*range(k)], [0.0] * k)
    rows, _ = exact.exact(vectors, np.repeat(vectors, 3, axis=0), k)
    assert (rows == np.arange(k)).all()


def test_more_near_ties_than_the_slack():
    """300 rows are too close for float32 products, so all of them are computed exactly."""
    rng = np.random.default_rng(0)
    near = unit_vectors(1, 128)[0] + rng.normal(0, 2e-5, (300, 128))
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    vectors = np.concatenate([unit_vectors(100, 128, seed=1), near.astype(np.float32)])
    # FAISS multiplies matrices only from this number of queries on. The test also shows that the
    # order of float32 products is not enough.
    queries = vectors[rng.integers(100, 400, 1_000)]
    _, by_faiss = faiss.knn(queries, vectors, 10 + exact.SLACK)
    rows, _ = exact.exact(vectors, queries, 10)
    assert any(set(rows[i]) - set(by_faiss[i]) for i in range(1_000))
    answers = pairs(vectors, queries, 10)
    for i in range(0, 1_000, 50):
        assert answers[i] == oracle.nearest(vectors, queries[i], 10)


def test_mapped_from_a_file(tmp_path):
    vectors = unit_vectors(50)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert pairs(mapped, vectors[:3], 5) == pairs(vectors, vectors[:3], 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.1])
def test_other_lengths_are_refused(bad):
    vectors = unit_vectors(3, 4)
    vectors[1] = 0  # a network may return zeros, which are accepted
    exact.require_unit_length(vectors, "these")
    vectors[2] = [bad, 0, 0, 0]
    with pytest.raises(UsageError, match="these: 1 of 3 embeddings"):
        exact.require_unit_length(vectors, "these")
