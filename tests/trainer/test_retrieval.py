"""Neighbours and metrics against a float64 brute force, and against a case done by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.retrieval import nearest_neighbours, retrieval_metrics


def oracle_order(embeddings, query):
    """Rows other than the query, by (squared distance, row), one pair at a time."""
    pairs = []
    for row in range(len(embeddings)):
        if row != query:
            both = zip(embeddings[query], embeddings[row], strict=True)
            pairs.append((math.fsum((float(a) - float(b)) ** 2 for a, b in both), row))
    return sorted(pairs)


def oracle_metrics(embeddings, labels, cutoffs):
    recall: dict = {k: [] for k in cutoffs}
    average, precision, lone = [], [], 0
    for query, label in enumerate(labels):
        order = [row for _, row in oracle_order(embeddings, query)]
        total = sum(labels[row] == label for row in order)
        if total == 0:
            lone += 1
            continue
        for k in cutoffs:
            recall[k].append(any(labels[row] == label for row in order[:k]))
        hits, summed = 0, 0.0
        for i, row in enumerate(order[:total], start=1):
            if labels[row] == label:
                hits += 1
                summed += hits / i
        average.append(summed / total)
        precision.append(hits / total)
    recall = {k: np.mean(found) for k, found in recall.items()}
    return recall, np.mean(average), np.mean(precision), lone


def check_against_oracle(embeddings, labels, cutoffs=(1, 2, 4, 8), tile=1024):
    got = retrieval_metrics(embeddings, labels, recall_at=cutoffs, tile=tile)
    recall, map_at_r, r_precision, lone = oracle_metrics(embeddings, labels, cutoffs)
    assert got.recall == pytest.approx(recall)
    assert got.map_at_r == pytest.approx(map_at_r)
    assert got.r_precision == pytest.approx(r_precision)
    assert got.num_without_match == lone
    assert got.num_queries == len(labels) - lone
    assert got.num_classes == len(set(labels))
    return got


def clustered(seed, sizes, dim=6, spread=0.7):
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.permutation(len(sizes)) * 10, sizes)
    rng.shuffle(labels)
    centres = rng.normal(size=(10 * len(sizes), dim))
    rows = centres[labels] + spread * rng.normal(size=(len(labels), dim))
    return rows.astype(np.float32), labels


def unbalanced(seed=1):
    return clustered(seed, [40, 1, 2, 17, 3, 1, 9, 5])


# On a line: class 0 at 0, 1, 10; class 1 at 2, 4; class 2 (alone) at 20.
# row (place): others by distance           R  hits among R  P(i) rel(i)    MAP@R
# 0 (0)        1:0  2:1  4:1  10:0  20:2    2  yes no        1              1/2
# 1 (1)        0:0* 2:1* 4:1  10:0  20:2    2  yes no        1              1/2   (* both at 1)
# 2 (10)       4:1  2:1  1:0  0:0*  20:2*   2  no  no                       0     (* both at 10)
# 3 (2)        1:0  0:0* 4:1*  10:0  20:2   1  no                           0     (* both at 2)
# 4 (4)        2:1  1:0  0:0  10:0  20:2    1  yes           1              1
LINE = np.array([[0.0], [1.0], [10.0], [2.0], [4.0], [20.0]], np.float32)
LINE_LABELS = np.array([0, 0, 0, 1, 1, 2])


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

    metrics = retrieval_metrics(LINE, LINE_LABELS, recall_at=(1, 2, 3))
    assert metrics.recall == {1: 3 / 5, 2: 3 / 5, 3: 1.0}
    assert metrics.map_at_r == pytest.approx((1 / 2 + 1 / 2 + 0 + 0 + 1) / 5)
    assert metrics.r_precision == pytest.approx((1 / 2 + 1 / 2 + 0 + 0 + 1) / 5)
    assert (metrics.num_queries, metrics.num_without_match, metrics.num_classes) == (5, 1, 3)
    assert metrics.map_at_r_by_class == {0: pytest.approx(1 / 3), 1: pytest.approx(1 / 2)}


def test_map_at_r_weighs_rank_and_r_precision_does_not():
    # Seen from 0: a match at 2 only, so P(2) = 1/2: MAP@R (1/2) / 2 = 1/4, R-precision 1/2.
    places = np.array([[0.0], [2.0], [100.0], [-1.0]])
    labels = [7, 7, 7, 8]
    metrics = retrieval_metrics(places, labels)
    # From 2: 0 (match), -1, 100 -> 1/2. From 100: 2, 0 -> 1.
    assert metrics.map_at_r == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)
    assert metrics.r_precision == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_equal_brute_force(seed):
    embeddings, _ = clustered(seed, [5, 9, 30, 1])
    neighbours = nearest_neighbours(embeddings, 7, tile=16)
    for query in range(len(embeddings)):
        expected = oracle_order(embeddings, query)[:7]
        assert neighbours.rows[query].tolist() == [row for _, row in expected]
        assert neighbours.distances[query] == pytest.approx([d for d, _ in expected], rel=1e-6)


@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
def test_metrics_equal_brute_force_on_unbalanced_classes(tile):
    embeddings, labels = unbalanced()
    metrics = check_against_oracle(embeddings, labels, tile=tile)
    assert metrics.num_without_match == 2
    assert 0 < metrics.map_at_r < metrics.r_precision < 1


def test_tile_size_does_not_matter():
    embeddings, labels = unbalanced()
    embeddings[10:20] = embeddings[30]
    whole = nearest_neighbours(embeddings, 20)
    for tile in (1, 5, 77, 78, 79):
        part = nearest_neighbours(embeddings, 20, tile=tile)
        np.testing.assert_array_equal(part.rows, whole.rows)
        np.testing.assert_array_equal(part.distances, whole.distances)
    assert retrieval_metrics(embeddings, labels, tile=3).map_at_r == pytest.approx(
        retrieval_metrics(embeddings, labels).map_at_r, rel=1e-12
    )


def test_the_query_is_left_out_by_row_and_its_copies_stay():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(6, 16)).astype(np.float32)
    embeddings[4] = embeddings[1]  # one image filed under two classes
    neighbours = nearest_neighbours(embeddings, 5)
    for query in range(6):
        assert sorted(neighbours.rows[query]) == [row for row in range(6) if row != query]
    assert neighbours.rows[1, 0] == 4
    assert neighbours.rows[4, 0] == 1
    assert neighbours.distances[[1, 4], 0].tolist() == [0, 0]
    metrics = retrieval_metrics(embeddings[[1, 4]], [0, 1])
    assert metrics.num_queries == 0
    # A wrong copy in the first place costs exactly what it should.
    check_against_oracle(embeddings, [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("count", [3, 5, 40, 300])
def test_ties_are_ordered_by_row(count):
    # All equal, at a point where float32 products round: the order is the rows' own.
    embeddings = np.full((count, 33), np.float32(0.1) / 3)
    neighbours = nearest_neighbours(embeddings, 4, tile=32)
    for query in range(count):
        others = [row for row in range(count) if row != query]
        assert neighbours.rows[query].tolist() == others[:4]
    assert not neighbours.distances.any()


def test_ties_away_from_the_query_are_ordered_by_row():
    rng = np.random.default_rng(5)
    few = rng.normal(size=(9, 48)).astype(np.float32)
    embeddings = few[rng.integers(0, 9, size=200)]
    neighbours = nearest_neighbours(embeddings, 199, tile=64)
    for query in range(200):
        d, rows = neighbours.distances[query], neighbours.rows[query]
        assert (np.diff(d) >= 0).all()
        assert (np.diff(rows)[np.diff(d) == 0] > 0).all()
        assert len(np.unique(d)) <= 9


def test_near_duplicates_far_from_the_origin_keep_their_order():
    # In float32, |q|^2 + |x|^2 - 2 q.x is off by more than these distances.
    offsets = np.array([0, 3, 1, 2, 7, 5], np.float32) / 64
    embeddings = np.full((6, 8), 100, np.float32)
    embeddings[:, 0] += offsets
    neighbours = nearest_neighbours(embeddings, 5)
    assert neighbours.rows[0].tolist() == [2, 3, 1, 5, 4]
    assert neighbours.distances[0] == pytest.approx((np.array([1, 2, 3, 5, 7]) / 64) ** 2, rel=1e-6)


def test_any_size_of_numbers():
    shape = np.array([[0.0], [1.0], [3.0], [7.0]])
    for scale in (1e-25, 1e-10, 1e10, 1e18, 1e38 / 3):
        neighbours = nearest_neighbours(shape * scale, 3)
        for query in range(4):
            assert sorted(neighbours.rows[query]) == [row for row in range(4) if row != query]
        assert not np.isnan(neighbours.distances).any()
    # Past float32's range all are equally far, so by row.
    far = nearest_neighbours(shape * 1e37, 2)
    assert far.rows[3].tolist() == [0, 1]
    assert np.isinf(far.distances).all()


def test_k_is_clipped():
    embeddings, labels = unbalanced()
    n = len(labels)
    assert nearest_neighbours(embeddings, n + 5).rows.shape == (n, n - 1)
    metrics = retrieval_metrics(embeddings, labels, recall_at=(n - 1, 10 * n))
    assert metrics.recall == {n - 1: 1.0, 10 * n: 1.0}


@pytest.mark.parametrize("rows", [0, 1])
def test_no_other_row(rows):
    embeddings = np.ones((rows, 4), np.float32)
    neighbours = nearest_neighbours(embeddings, 3)
    assert neighbours.rows.shape == neighbours.distances.shape == (rows, 0)
    metrics = retrieval_metrics(embeddings, [3] * rows, recall_at=(1, 5))
    assert (metrics.num_queries, metrics.num_without_match, metrics.num_classes) == (0, rows, rows)
    assert math.isnan(metrics.map_at_r)
    assert math.isnan(metrics.r_precision)
    assert list(metrics.recall) == [1, 5]
    assert all(map(math.isnan, metrics.recall.values()))
    assert metrics.map_at_r_by_class == {}


def test_every_image_alone_in_its_class():
    metrics = retrieval_metrics(np.eye(5), np.arange(5))
    assert (metrics.num_queries, metrics.num_without_match, metrics.num_classes) == (0, 5, 5)
    assert math.isnan(metrics.map_at_r)


def test_one_class_and_perfect_clusters_score_one():
    embeddings = np.repeat(10 * np.eye(4), 5, axis=0)
    embeddings += np.random.default_rng(0).normal(size=embeddings.shape) / 10
    for labels in (np.zeros(20, int), np.repeat(np.arange(4), 5)):
        metrics = retrieval_metrics(embeddings, labels)
        assert (metrics.map_at_r, metrics.r_precision) == (1, 1)
        assert metrics.recall == {1: 1, 2: 1, 4: 1, 8: 1}


def test_recall_grows_with_k():
    embeddings, labels = clustered(3, [2] * 40, spread=2)
    recall = retrieval_metrics(embeddings, labels, recall_at=range(80, 0, -1)).recall
    values = list(recall.values())
    assert list(recall) == list(range(1, 81))
    assert values == sorted(values)
    assert values[0] < values[-1] == 1


def test_per_class_values_average_to_the_whole():
    embeddings, labels = unbalanced()
    metrics = retrieval_metrics(embeddings, labels)
    counts = {int(label): int((labels == label).sum()) for label in np.unique(labels)}
    by_class = metrics.map_at_r_by_class
    assert set(by_class) == {label for label, count in counts.items() if count > 1}
    total = sum(by_class[label] * counts[label] for label in by_class)
    assert metrics.map_at_r == pytest.approx(total / metrics.num_queries)


def test_tensors_and_large_labels():
    embeddings, labels = unbalanced()
    plain = retrieval_metrics(embeddings, labels)
    big = tf.constant(labels // 10 + 2**40, tf.int64)
    assert retrieval_metrics(tf.constant(embeddings), big).recall == plain.recall
    half = tf.cast(embeddings, tf.bfloat16)
    check_against_oracle(tf.cast(half, tf.float32).numpy(), labels)
    assert retrieval_metrics(half, labels).map_at_r > 0


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(-3, 3), min_size=2, max_size=40),
    seed=st.integers(0, 2**32 - 1),
    tile=st.integers(1, 50),
)
def test_the_order_of_rows_does_not_matter(labels, seed, tile):
    rng = np.random.default_rng(seed)
    labels = np.array(labels)
    embeddings = rng.normal(size=(len(labels), 3)).astype(np.float32)  # no ties
    order = rng.permutation(len(labels))
    one = retrieval_metrics(embeddings, labels, tile=tile)
    other = retrieval_metrics(embeddings[order], labels[order])
    assert other.recall == pytest.approx(one.recall, nan_ok=True)
    assert other.map_at_r == pytest.approx(one.map_at_r, nan_ok=True)
    assert other.r_precision == pytest.approx(one.r_precision, nan_ok=True)
    assert other.map_at_r_by_class == pytest.approx(one.map_at_r_by_class)
    assert other.num_without_match == one.num_without_match


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=25).filter(
        lambda labels: len(set(labels)) < len(labels)
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_metrics_equal_brute_force_with_many_ties(labels, seed):
    # Small integers: distances are exact, ties are many.
    embeddings = np.random.default_rng(seed).integers(-1, 2, size=(len(labels), 3))
    check_against_oracle(embeddings, labels, cutoffs=(1, 3), tile=4)


def test_rows_that_are_not_finite():
    embeddings = np.ones((10, 3), np.float32)
    embeddings[2] = np.nan
    embeddings[5, 1] = np.inf
    with pytest.raises(ValueError, match="2 of 10 embeddings are not finite"):
        nearest_neighbours(embeddings, 1)
    with pytest.raises(ValueError, match="2 of 10 embeddings are not finite"):
        retrieval_metrics(embeddings, np.zeros(10, int))
    with pytest.raises(ValueError, match="1 of 2 embeddings are not finite"):
        nearest_neighbours(np.array([[1.0], [1e200]]), 1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: nearest_neighbours(np.ones((3, 2)), 0), "k is 0"),
        (lambda: nearest_neighbours(np.ones((3, 2)), 1, tile=0), "tile is 0"),
        (lambda: nearest_neighbours(np.ones(3), 1), r"embeddings are \[3\]"),
        (lambda: retrieval_metrics(np.ones((3, 2)), [1, 2]), r"labels are \[2\], must be \[3\]"),
        (lambda: retrieval_metrics(np.ones((2, 2)), [1.0, 2.0]), "labels are float64"),
        (lambda: retrieval_metrics(np.ones((2, 2)), [1, 2], recall_at=(0, 1)), "recall_at has 0"),
    ],
)
def test_refused_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_some_queries():
    embeddings = np.random.default_rng(0).normal(size=(50, 4))
    queries = np.array([7, 0, 49, 7])
    some = nearest_neighbours(embeddings, 5, queries=queries, tile=3)
    every = nearest_neighbours(embeddings, 5)
    np.testing.assert_array_equal(some.rows, every.rows[queries])
    np.testing.assert_array_equal(some.distances, every.distances[queries])
