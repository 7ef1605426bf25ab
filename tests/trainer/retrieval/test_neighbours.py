"""Nearest neighbours, compared with a brute force over all pairs."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.retrieval.data import clustered, unbalanced
from tests.fixtures.retrieval.oracle import order
from trainer.retrieval.matches import Matches
from trainer.retrieval.neighbours import nearest_neighbours

LINE = np.array([[0.0], [1.0], [10.0], [2.0], [4.0], [20.0]], np.float32)


def others(count, query):
    return [row for row in range(count) if row != query]


def check(found, queries, gallery, kept):
    """Compares with a brute force over the rows kept(query) of the gallery."""
    for query, (rows, distances) in enumerate(zip(*found, strict=True)):
        expected = order(queries[query], gallery, kept(query))[: found.rows.shape[1]]
        assert rows.tolist() == [row for _, row in expected]
        np.testing.assert_array_equal(distances, [d for d, _ in expected])


def check_within(found, rows):
    check(found, rows, rows, lambda query: others(len(rows), query))


def test_worked_example():
    neighbours = nearest_neighbours(LINE, 3)
    assert neighbours.rows.tolist() == [
        [1, 3, 4],
        [0, 3, 4],
        [4, 3, 1],
        [1, 0, 4],
        [3, 1, 0],
        [2, 4, 3],
    ]
    assert neighbours.distances.tolist()[:3] == [[1, 4, 16], [1, 1, 9], [36, 64, 81]]
    assert neighbours.rows.dtype == np.int32
    assert neighbours.distances.dtype == np.float32


@pytest.mark.parametrize("seed", range(3))
def test_brute_force(seed):
    embeddings, _ = clustered(seed, [5, 9, 30, 1])
    check_within(nearest_neighbours(embeddings, 7, query_tile=16, gallery_tile=10), embeddings)


def test_a_gallery_of_its_own():
    rows, _ = clustered(4, [30, 30])
    queries, gallery = rows[:23], np.concatenate([rows[23:], rows[:2]])
    neighbours = nearest_neighbours(queries, 9, gallery=gallery, query_tile=7, gallery_tile=8)
    assert neighbours.rows.shape == (23, 9)
    check(neighbours, queries, gallery, lambda query: range(len(gallery)))
    # A copy in the gallery is not the query itself.
    assert neighbours.distances[:2, 0].tolist() == [0, 0]
    assert nearest_neighbours(queries, 99, gallery=gallery).rows.shape == (23, 39)
    assert nearest_neighbours(queries, 9, gallery=gallery[:0]).rows.shape == (23, 0)
    assert nearest_neighbours(queries[:0], 9, gallery=gallery).rows.shape == (0, 9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 9), st.integers(1, 20))
def test_rows_that_matches_leave_out(seed, within, k, tile):
    """Rows of the query's class and group are left out; fewer than k may remain."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(25, 3)).round(1).astype(np.float32)
    labels = rng.choice([3, 7], 25)
    groups = rng.choice(np.array(["x", "y", "", None], object), 25).tolist()
    count = 25 if within else 12
    first = 0 if within else 12
    matches = Matches(
        labels[:count], groups[:count], None if within else (labels[first:], groups[first:])
    )
    queries = rng.integers(0, count, 6)
    found = nearest_neighbours(
        rows[:count],
        k,
        queries=queries,
        gallery=None if within else rows[first:],
        matches=matches,
        query_tile=tile,
        gallery_tile=tile,
    )
    for query, nearest, distances in zip(queries.tolist(), *found, strict=True):
        kept = [
            row
            for row in range(25 - first)
            if not (within and row == query)
            and not (
                labels[first + row] == labels[query]
                and groups[query]
                and groups[first + row] == groups[query]
            )
        ]
        expected = order(rows[query], rows[first:], kept)[:k]
        none = min(k, 25 - first - within) - len(expected)
        assert nearest.tolist() == [row for _, row in expected] + [-1] * none
        np.testing.assert_array_equal(distances, [d for d, _ in expected] + [np.inf] * none)


def test_tiles_do_not_matter():
    embeddings, _ = unbalanced()
    embeddings[10:20] = embeddings[30]
    whole = nearest_neighbours(embeddings, 20)
    for queries, gallery in ((1, 30), (5, 77), (77, 5), (78, 79), (1000, 1)):
        part = nearest_neighbours(embeddings, 20, query_tile=queries, gallery_tile=gallery)
        np.testing.assert_array_equal(part.rows, whole.rows)
        np.testing.assert_array_equal(part.distances, whole.distances)


def test_the_query_is_left_out_by_row_and_its_copies_stay():
    embeddings = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    embeddings[4] = embeddings[1]  # one image in two classes
    neighbours = nearest_neighbours(embeddings, 5)
    for query in range(6):
        assert sorted(neighbours.rows[query]) == others(6, query)
    assert neighbours.rows[1, 0] == 4
    assert neighbours.rows[4, 0] == 1
    assert neighbours.distances[[1, 4], 0].tolist() == [0, 0]


@pytest.mark.parametrize("count", [3, 5, 40, 300])
def test_ties_are_ordered_by_row(count):
    # All points are equal, at a place where float32 products round, so the order is that of the
    # rows.
    embeddings = np.full((count, 33), np.float32(0.1) / 3)
    neighbours = nearest_neighbours(embeddings, 4, query_tile=32, gallery_tile=70)
    for query in range(count):
        assert neighbours.rows[query].tolist() == others(count, query)[:4]
    assert not neighbours.distances.any()


def test_ties_away_from_the_query_are_ordered_by_row():
    rng = np.random.default_rng(5)
    few = rng.normal(size=(9, 48)).astype(np.float32)
    embeddings = few[rng.integers(0, 9, size=200)]
    neighbours = nearest_neighbours(embeddings, 199, query_tile=64)
    for query in range(200):
        d, rows = neighbours.distances[query], neighbours.rows[query]
        assert (np.diff(d) >= 0).all()
        assert (np.diff(rows)[np.diff(d) == 0] > 0).all()
        assert len(np.unique(d)) <= 9


def test_near_duplicates_far_from_the_origin_keep_their_order():
    # In float32, the error of |q|^2 + |x|^2 - 2 q.x is larger than these distances.
    offsets = np.array([0, 3, 1, 2, 7, 5], np.float32) / 64
    embeddings = np.full((7, 8), 100, np.float32)
    embeddings[:6, 0] += offsets
    embeddings[6] = -100  # so that the mean of all rows is far from the others
    neighbours = nearest_neighbours(embeddings, 5)
    assert neighbours.rows[0].tolist() == [2, 3, 1, 5, 4]
    np.testing.assert_array_equal(
        neighbours.distances[0], (np.array([1, 2, 3, 5, 7], np.float32) / 64) ** 2
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    closeness=st.integers(0, 24),
    size=st.integers(-30, 12),
    k=st.integers(1, 9),
)
def test_points_closer_than_the_matmul_can_tell(seed, closeness, size, k):
    """Points are 2^-closeness apart and 1 from the origin, in units of 2^size."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(3, 5))[rng.integers(0, 3, 40)]
    points = (points + 2.0**-closeness * rng.normal(size=(40, 5))) * 2.0**size
    points = points.astype(np.float32)
    neighbours = nearest_neighbours(points, k, query_tile=13, gallery_tile=17)
    check_within(neighbours, points)


def test_any_size_of_numbers():
    shape = np.array([[0.0], [1.0], [3.0], [7.0]])
    for scale in (1e-45, 1e-25, 1e-20, 1e-10, 1e10, 1e18, 1e38 / 3):
        check_within(nearest_neighbours(shape * scale, 3), (shape * scale).astype(np.float32))
    # Beyond the range of float32 all are equally far, so the order is that of the rows.
    far = nearest_neighbours(shape * 1e37, 2)
    assert far.rows[3].tolist() == [0, 1]
    assert np.isinf(far.distances).all()


@pytest.mark.parametrize("rows", [0, 1])
def test_no_other_row(rows):
    neighbours = nearest_neighbours(np.ones((rows, 4), np.float32), 3)
    assert neighbours.rows.shape == neighbours.distances.shape == (rows, 0)


def test_k_is_clipped():
    embeddings, labels = unbalanced()
    n = len(labels)
    assert nearest_neighbours(embeddings, n + 5).rows.shape == (n, n - 1)


def test_some_queries():
    embeddings = np.random.default_rng(0).normal(size=(50, 4))
    queries = np.array([7, 0, 49, 7])
    some = nearest_neighbours(embeddings, 5, queries=queries, query_tile=3)
    every = nearest_neighbours(embeddings, 5)
    np.testing.assert_array_equal(some.rows, every.rows[queries])
    np.testing.assert_array_equal(some.distances, every.distances[queries])


def test_of_tensors():
    half = tf.cast(np.random.default_rng(0).normal(size=(9, 4)), tf.bfloat16)
    found = nearest_neighbours(half, 3)
    np.testing.assert_array_equal(found.rows, nearest_neighbours(tf.cast(half, "float64"), 3).rows)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: nearest_neighbours(np.ones((3, 2)), 0), "k is 0"),
        (lambda: nearest_neighbours(np.ones((3, 2)), 1, gallery_tile=0), "gallery_tile is 0"),
        (lambda: nearest_neighbours(np.ones(3), 1), r"embeddings are \[3\]"),
        (
            lambda: nearest_neighbours(np.ones((3, 2)), 1, gallery=np.ones((3, 4))),
            "queries have 2 dimensions, the gallery 4",
        ),
        (
            lambda: nearest_neighbours(np.ones((3, 2)), 1, gallery=np.full((3, 2), np.nan)),
            "3 of 3 gallery embeddings are not finite",
        ),
        (
            lambda: nearest_neighbours(np.array([[1.0], [1e200], [np.inf]]), 1),
            "2 of 3 embeddings are not finite in float32",
        ),
    ],
)
def test_refused_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
