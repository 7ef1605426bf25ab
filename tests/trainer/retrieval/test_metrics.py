"""Metrics computed by hand, compared with all orders of tied rows and with another library."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.retrieval import oracle
from tests.fixtures.retrieval.data import clustered, unbalanced
from trainer.retrieval.matches import Gallery, Matches
from trainer.retrieval.metrics import retrieval_metrics

CUTOFFS = (1, 2, 4, 8)


def columns(found, cutoffs=CUTOFFS):
    names = [*(f"recall_at_{k}" for k in cutoffs), "map_at_r", "r_precision"]
    return [found[name] for name in [*names, "mean_reciprocal_rank"]]


def check(embeddings, labels, cutoffs=CUTOFFS, *, groups=None, gallery=None, **tiles):
    """Compares with the oracle; the gallery is (embeddings, labels, groups)."""
    of = None if gallery is None else Gallery(*gallery)
    got = retrieval_metrics(
        embeddings, labels, groups=groups, gallery=of, recall_at=cutoffs, **tiles
    )
    expected = oracle.metrics(
        np.asarray(embeddings), labels, cutoffs, groups=groups, gallery=gallery
    )
    assert got.queries.tolist() == list(expected)
    values = np.array([*expected.values()]).reshape(-1, len(cutoffs) + 3)
    np.testing.assert_allclose(np.stack(columns(got.of_queries, cutoffs), 1), values, atol=1e-9)
    if len(values):
        np.testing.assert_allclose(columns(got.mean, cutoffs), values.mean(axis=0), atol=1e-9)
    assert got.num_without_match == len(labels) - len(expected)
    assert got.num_classes == len({labels[query] for query in expected})
    return got


# On a line: class 0 at 0, 1, 10; class 1 at 2, 4; class 2 (alone) at 20.
# row (place): others by distance             R  MAP@R              R-prec.  1 / rank
# 0 (0)        1:0  2:1  4:1  10:0  20:2      2  1/2                1/2      1
# 1 (1)        0:0 = 2:1  4:1  10:0  20:2     2  (1 + 1/2) / 2 / 2  1/2      (1 + 1/2) / 2
# 2 (10)       4:1  2:1  1:0  0:0 = 20:2      2  0                  0        1/3
# 3 (2)        1:0  0:0 = 4:1  10:0  20:2     1  0                  0        (1/2 + 1/3) / 2
# 4 (4)        2:1  1:0  0:0  10:0  20:2      1  1                  1        1
LINE = np.array([[0.0], [1.0], [10.0], [2.0], [4.0], [20.0]], np.float32)
LINE_LABELS = [0, 0, 0, 1, 1, 2]


def test_worked_example():
    metrics = retrieval_metrics(LINE, LINE_LABELS, recall_at=(1, 2, 3))
    assert metrics.queries.tolist() == [0, 1, 2, 3, 4]
    of = metrics.of_queries
    assert of["map_at_r"].tolist() == pytest.approx([1 / 2, 3 / 8, 0, 0, 1])
    assert of["r_precision"].tolist() == pytest.approx([1 / 2, 1 / 2, 0, 0, 1])
    assert of["mean_reciprocal_rank"].tolist() == pytest.approx([1, 3 / 4, 1 / 3, 5 / 12, 1])
    assert of["recall_at_1"].tolist() == pytest.approx([1, 1 / 2, 0, 0, 1])
    assert of["recall_at_2"].tolist() == pytest.approx([1, 1, 0, 1 / 2, 1])
    assert of["recall_at_3"].tolist() == pytest.approx([1, 1, 1, 1, 1])
    assert metrics.map_at_r == pytest.approx((1 / 2 + 3 / 8 + 1) / 5)
    assert metrics.class_labels.tolist() == [0, 1]
    assert metrics.class_counts.tolist() == [3, 2]
    assert metrics.of_classes["map_at_r"].tolist() == pytest.approx([7 / 24, 1 / 2])
    assert (metrics.num_queries, metrics.num_without_match, metrics.num_classes) == (5, 1, 2)
    assert metrics.num_gallery == 6
    check(LINE, LINE_LABELS)


def test_map_at_r_weighs_rank_and_r_precision_does_not():
    # From 0, the only match among the first R = 2 has rank 2, so P(2) = 1/2, MAP@R is (1/2) / 2 =
    # 1/4 and R-precision is 1/2.
    places = np.array([[0.0], [2.0], [100.0], [-1.0]])
    metrics = retrieval_metrics(places, [7, 7, 7, 8])
    # From 2, the order is 0 (match), -1, 100, which gives 1/2. From 100 it is 2, 0, which gives 1.
    assert metrics.of_queries["map_at_r"].tolist() == pytest.approx([1 / 4, 1 / 2, 1])
    assert metrics.of_queries["r_precision"].tolist() == pytest.approx([1 / 2, 1 / 2, 1])


@pytest.mark.parametrize("tiles", [(1, 30), (7, 64), (64, 7), (1000, 1000)])
def test_unbalanced_classes(tiles):
    embeddings, labels = unbalanced()
    metrics = check(embeddings, labels, query_tile=tiles[0], gallery_tile=tiles[1])
    assert metrics.num_without_match == 2
    assert 0 < metrics.map_at_r < metrics.mean["r_precision"] < 1


def test_large_classes_and_misses_at_any_depth():
    """Distances come from matmuls here, and matches are ranked beyond the R nearest."""
    for spread in (0.3, 30.0):
        embeddings, labels = clustered(2, [90, 70, 3, 1], spread=spread)
        check(embeddings, labels, cutoffs=(1, 50), gallery_tile=40)


@pytest.mark.parametrize("scale", [1e-30, 1e-23, 3e-23, 1e-22, 1e-19, 1e18, 1e19, 1e30])
def test_any_size_of_numbers(scale):
    """Distances that round to 0, to few bits, or to infinity are ties."""
    check(LINE * np.float32(scale), LINE_LABELS)
    check(LINE * np.float32(scale), LINE_LABELS, gallery_tile=1)


def test_a_query_whose_matches_are_all_far():
    places = np.concatenate([[0.0, 50_000.0], np.arange(1, 401)])[:, None]
    metrics = retrieval_metrics(places, [1, 1] + [2] * 400, recall_at=(400, 401), gallery_tile=30)
    assert metrics.of_queries["mean_reciprocal_rank"][0] == 1 / 401
    assert metrics.of_queries["recall_at_400"][0] == 0
    assert metrics.of_queries["recall_at_401"][0] == 1
    assert metrics.of_queries["map_at_r"][0] == 0


small = st.integers(-1, 1).map(float)


@st.composite
def tied(draw, most=6):
    """Points on a small grid, so many distances are equal, with labels and groups."""
    count = draw(st.integers(1, most))

    def several(values):
        return draw(st.lists(values, min_size=count, max_size=count))

    points = np.array(several(st.tuples(small, small)), np.float32)
    return points, several(st.integers(0, 2)), several(st.sampled_from(["a", "b", "", None]))


@settings(max_examples=60, deadline=None)
@given(data=tied(), grouped=st.booleans(), tile=st.integers(1, 7))
def test_ties_are_the_mean_over_all_orders(data, grouped, tile):
    points, labels, groups = data
    groups = groups if grouped else None
    check(points, labels, (1, 2, 3), groups=groups, query_tile=tile, gallery_tile=tile)


@settings(max_examples=40, deadline=None)
@given(queries=tied(3), gallery=tied(), grouped=st.booleans())
def test_a_gallery_of_its_own(queries, gallery, grouped):
    points, labels, groups = queries
    rows, kinds, places = gallery
    groups, places = (groups, places) if grouped else (None, None)
    got = check(points, labels, (1, 3), groups=groups, gallery=(rows, kinds, places))
    assert got.num_gallery == len(rows)


@settings(max_examples=40, deadline=None)
@given(data=tied(40), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(data, seed):
    points, labels, groups = data
    order = np.random.default_rng(seed).permutation(len(labels))
    one = retrieval_metrics(points, labels, groups=groups)
    other = retrieval_metrics(
        points[order], np.array(labels)[order], groups=[groups[i] for i in order], gallery_tile=9
    )
    for name, values in one.of_queries.items():
        everywhere = np.full(len(labels), np.nan)
        everywhere[one.queries] = values
        np.testing.assert_allclose(other.of_queries[name], everywhere[order][other.queries])
    assert other.mean == pytest.approx(one.mean, nan_ok=True)
    assert other.num_without_match == one.num_without_match


def test_ties_of_thousands_by_formulas():
    """All points are equal: 5 matches among 2,004 others, in random order."""
    labels = np.array([0] * 6 + [1] * 1_999)
    metrics = retrieval_metrics(np.full((len(labels), 3), 0.1), labels, recall_at=(1, 10))
    of, m, p = metrics.of_queries, 2_004, 5
    assert of["recall_at_1"][0] == pytest.approx(p / m)
    none = math.comb(m - p, 10) / math.comb(m, 10)
    assert of["recall_at_10"][0] == pytest.approx(1 - none)
    assert of["r_precision"][0] == pytest.approx(p / m)
    first = [math.comb(m - t, p - 1) / math.comb(m, p) / t for t in range(1, m - p + 2)]
    assert of["mean_reciprocal_rank"][0] == pytest.approx(math.fsum(first))
    spots = [p / m * (1 + (s - 1) * (p - 1) / (m - 1)) / s for s in range(1, p + 1)]
    assert of["map_at_r"][0] == pytest.approx(math.fsum(spots) / p)


def test_rows_of_the_same_class_and_group_are_left_out():
    """Other pictures of the query's session are neither matches nor misses."""
    places = np.array([[0.0], [1.0], [2.5], [3.0], [9.0]])
    labels = [5, 5, 6, 5, 6]
    free = retrieval_metrics(places, labels)
    assert free.of_queries["recall_at_1"].tolist() == [1, 1, 0, 0, 0]
    groups = ["monday", "monday", "monday", "tuesday", "friday"]
    metrics = check(places, labels, groups=groups)
    # For query 0, itself and row 1 are left out. The nearest row is 2, which has another class,
    # though the same group.
    assert metrics.of_queries["mean_reciprocal_rank"].tolist() == pytest.approx(
        [1 / 2, 1 / 2, 1 / 4, 1 / 2, 1 / 2]
    )
    assert Matches(labels, groups).num_matches.tolist() == [1, 1, 1, 2, 1]
    lone = retrieval_metrics(places, labels, groups=["a"] * 5)
    assert (lone.num_queries, lone.num_without_match) == (0, 5)
    without = retrieval_metrics(places, labels, groups=[None, "", None, "", ""])
    assert without.mean == free.mean


def test_groups_count_over_both_splits():
    queries, rows = np.array([[0.0]]), np.array([[0.0], [1.0], [2.0]])
    gallery = Gallery(rows, [3, 4, 3], ["a", "a", "b"])
    metrics = retrieval_metrics(queries, [3], groups=["a"], gallery=gallery)
    assert metrics.mean["mean_reciprocal_rank"] == 1 / 2
    plain = retrieval_metrics(queries, [3], gallery=Gallery(rows, [3, 4, 3]))
    assert plain.mean["mean_reciprocal_rank"] == 1


def test_queries_of_classes_that_the_gallery_lacks():
    gallery = Gallery(np.eye(3), np.array([1, 1, 2]))
    metrics = retrieval_metrics(np.eye(3), np.array([1, 7, 2]), gallery=gallery)
    assert metrics.queries.tolist() == [0, 2]
    assert (metrics.num_without_match, metrics.num_classes, metrics.num_gallery) == (1, 2, 3)
    nothing = retrieval_metrics(np.eye(3), [1, 7, 2], gallery=Gallery(np.ones((0, 3)), []))
    assert nothing.num_without_match == 3


def test_one_class_and_perfect_clusters_score_one():
    embeddings = np.repeat(10 * np.eye(4), 5, axis=0)
    embeddings += np.random.default_rng(0).normal(size=embeddings.shape) / 10
    for labels in (np.zeros(20, int), np.repeat(np.arange(4), 5)):
        metrics = retrieval_metrics(embeddings, labels)
        assert set(metrics.mean.values()) == {1}


def test_recall_grows_with_k():
    embeddings, labels = clustered(3, [2] * 40, spread=2)
    mean = retrieval_metrics(embeddings, labels, recall_at=range(80, 0, -1)).mean
    assert [*mean][:80] == [f"recall_at_{k}" for k in range(1, 81)]
    values = [*mean.values()][:80]
    assert values == sorted(values)
    assert values[0] < values[-1] == 1


def test_per_class_values_average_to_the_whole():
    metrics = retrieval_metrics(*unbalanced())
    assert metrics.class_counts.sum() == metrics.num_queries
    for name, values in metrics.of_classes.items():
        total = values @ metrics.class_counts / metrics.num_queries
        assert metrics.mean[name] == pytest.approx(total)


def test_tensors_and_large_labels():
    embeddings, labels = unbalanced()
    plain = retrieval_metrics(embeddings, labels)
    big = tf.constant(labels // 10 + 2**40, tf.int64)
    assert retrieval_metrics(tf.constant(embeddings), big).mean == plain.mean
    half = tf.cast(embeddings, tf.bfloat16)
    wide = tf.cast(half, tf.float64)
    assert retrieval_metrics(half, labels).mean == retrieval_metrics(wide, labels).mean


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_no_query_has_a_match(rows):
    metrics = retrieval_metrics(np.eye(rows, 4), np.arange(rows), recall_at=(1, 5))
    assert (metrics.num_queries, metrics.num_without_match, metrics.num_classes) == (0, rows, 0)
    names = "recall_at_1 recall_at_5 map_at_r r_precision mean_reciprocal_rank"
    assert list(metrics.mean) == names.split()
    assert all(map(math.isnan, metrics.mean.values()))
    assert metrics.class_labels.tolist() == []


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: retrieval_metrics(np.ones((3, 2)), [1, 2]), r"labels are \[2\], must be \[3\]"),
        (lambda: retrieval_metrics(np.ones((2, 2)), [1.0, 2.0]), "labels are float64"),
        (lambda: retrieval_metrics(np.ones((2, 2)), [1, 2], recall_at=(0, 1)), "recall_at has 0"),
        (lambda: retrieval_metrics(np.ones((2, 2)), [1, 2], groups=["a"]), "groups are"),
        (
            lambda: retrieval_metrics(
                np.ones((2, 2)), [1, 2], groups=["a", "b"], gallery=Gallery(np.ones((1, 2)), [1])
            ),
            "groups of the queries and of the gallery: give both or none",
        ),
        (
            lambda: retrieval_metrics(np.ones((2, 2)), [1, 2], gallery=Gallery(np.eye(2), [1])),
            r"gallery labels are \[1\], must be \[2\]",
        ),
        (lambda: retrieval_metrics(np.full((2, 2), np.inf), [1, 2]), "2 of 2 embeddings"),
    ],
)
def test_refused_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
