"""The findings of a report, for planted problems and compared with brute force."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.report import findings


def nearest(embedding, k):
    """Rows [N, k] and distances [N, k] of each row's nearest others; ties are in row order."""
    square = ((embedding[:, None].astype(np.float64) - embedding[None]) ** 2).sum(2)
    np.fill_diagonal(square, np.inf)
    rows = np.argsort(square, axis=1, kind="stable")[:, : min(k, len(embedding) - 1)]
    return rows, np.take_along_axis(square, rows, axis=1).astype(np.float32)


def two_classes():
    """Five images of class 7 around 0 and five of class 3 around 10, on a line."""
    embedding = np.array([0.0, 1, 2, 3, 4, 10, 11, 12, 13, 14], np.float32)[:, None]
    return embedding, np.array([7] * 5 + [3] * 5)


def wrong_labels(**labels: int) -> findings.WrongLabels:
    """The wrong labels of `two_classes` where rows, such as row_2, have other labels."""
    embedding, label = two_classes()
    for row, changed in labels.items():
        label[int(row.removeprefix("row_"))] = changed
    return findings.wrong_labels(embedding, label, nearest(embedding, 4)[0])


def test_a_planted_wrong_label_is_found():
    wrong = wrong_labels(row_2=3)  # this image is at 2, among class 7
    assert (wrong.row.tolist(), wrong.other.tolist(), wrong.votes.tolist()) == ([2], [7], [4])
    # The mean squared distance to 0, 1, 3, 4 is (4 + 1 + 1 + 4) / 4; that to 10, 11, 12, 13 is (64
    # + 81 + 100 + 121) / 4.
    assert wrong.score.tolist() == pytest.approx([1 - 2.5 / 91.5])
    assert wrong.num_alone == 0


def test_no_label_is_wrong_where_classes_are_apart():
    assert wrong_labels().row.tolist() == wrong_labels().score.tolist() == []


def test_images_alone_in_their_class_are_counted_and_not_judged():
    wrong = wrong_labels(row_2=5)
    assert (wrong.row.tolist(), wrong.num_alone) == ([], 1)


def test_two_wrong_labels_the_surer_first():
    # 14 is farther from 10, 11, 12, 13 than 2 is from 0, 1, 3, 4.
    wrong = wrong_labels(row_2=3, row_9=7)
    assert wrong.row.tolist() == [2, 9]
    assert wrong.score[0] > wrong.score[1] > 0


def test_a_class_of_few_images_can_be_sat_in():
    """Two of ten neighbours are more than half of what the class has."""
    embedding = np.array([0, 0.1, 0.2, 50, 51, 52, 53, 54, 55, 56, 57, 58], np.float32)[:, None]
    label = np.array([1, 1, 2] + [2] * 9)
    wrong = findings.wrong_labels(embedding, label, nearest(embedding, 10)[0])
    assert wrong.row.tolist() == []  # eight others of its own class are among the ten neighbours
    wrong = findings.wrong_labels(embedding, label, nearest(embedding, 3)[0])
    assert wrong.row.tolist() == [2]
    assert wrong.votes.tolist() == [2]


def plain_wrong_labels(embedding, label, rows):
    """The rule of docs/report.md for wrong labels, one image at a time."""
    wrong = {}
    for i, near in enumerate(rows):
        votes = collections.Counter(label[j] for j in near)
        own = votes.pop(label[i], 0)
        if not votes or (label == label[i]).sum() == 1:
            continue
        most = max(votes.values())
        other = next(label[j] for j in near if votes.get(label[j]) == most)
        size = int((label == other).sum())
        if 2 * most <= min(len(near), size) or own >= most:
            continue
        square = ((embedding.astype(np.float64) - embedding[i]) ** 2).sum(1)
        to_own = np.sort(np.delete(square, i)[np.delete(label, i) == label[i]])
        to_other = np.sort(square[label == other])
        m = min(len(near), len(to_own), len(to_other))
        if to_own[:m].mean() > 0 and (score := 1 - to_other[:m].mean() / to_own[:m].mean()) > 0:
            wrong[i] = (other, most, score)
    return wrong


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 6), st.integers(1, 7))
def test_wrong_labels_are_those_of_the_plain_rule(seed, num, k, chunk):
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((num, 3)).astype(np.float32)
    label = rng.integers(0, 4, num)
    rows, _ = nearest(embedding, k)
    wrong = findings.wrong_labels(embedding, label, rows, chunk=chunk)
    expected = plain_wrong_labels(embedding, label, rows)
    assert sorted(wrong.row) == sorted(expected)
    for row, other, votes, score in zip(
        wrong.row, wrong.other, wrong.votes, wrong.score, strict=True
    ):
        assert (other, votes) == expected[row][:2]
        assert score == pytest.approx(expected[row][2], abs=1e-6)
    assert (np.diff(wrong.score) <= 0).all()


def test_planted_near_duplicates_are_found():
    """Images at unit vectors, 2 apart, and copies that are moved along their own vector."""
    embedding = np.eye(24, dtype=np.float32)
    for row, along in {1: 0.25, 5: 0.125, 9: 0.0625, 13: 1.3}.items():
        embedding[row] *= along
        embedding[row, row - 1] = 1
    label = np.array([0] * 12 + [1] * 12)
    label[[5, 13]] = 2
    split = np.array(["train"] * 9 + ["test"] * 15, object)
    duplicates = findings.near_duplicates(label, split, *nearest(embedding, 4))
    # 8 and 9 have two splits, 4 and 5 have two classes, and 0 and 1 have one split and one class.
    # 12 and 13 are 1.69 apart; half of the usual distance around them is (2 x 3.69)^.5 / 2 = 1.36.
    assert duplicates.pairs.tolist() == [[8, 9], [4, 5]]
    assert duplicates.distance.tolist() == [0.0625**2, 0.125**2]
    usual = [(2 * (2 + square)) ** 0.5 for square in duplicates.distance.tolist()]
    np.testing.assert_allclose(duplicates.ratio, duplicates.distance / usual, rtol=1e-6)
    assert duplicates.num_crowded == 0


def test_crowds_of_near_duplicates_are_counted():
    embedding = np.eye(10, dtype=np.float32)
    embedding[1:4] = embedding[0]
    label = np.arange(10)
    split = np.array(["train"] * 10, object)
    duplicates = findings.near_duplicates(label, split, *nearest(embedding, 2))
    assert duplicates.num_crowded == 4  # each of the four has three copies, and two are listed
    duplicates = findings.near_duplicates(label, split, *nearest(embedding, 4))
    assert len(duplicates.pairs) == 6
    assert not duplicates.ratio.any()
    assert duplicates.num_crowded == 0


def plain_near_duplicates(embedding, label, split, k, alike=lambda i, j: 0.0):
    """The rule of docs/report.md for near-duplicates, one pair at a time."""
    rows, distance = nearest(embedding, k)
    usual = np.median(distance.astype(float), axis=1)
    pairs = set()
    for i in range(len(embedding)):
        for j, d in zip(rows[i].tolist(), distance[i].tolist(), strict=True):
            apart = (label[i], split[i]) != (label[j], split[j])
            share = 1 if apart and alike(i, j) >= 0.99 else 0.5
            if apart and d <= (usual[i] * usual[j]) ** 0.5 * share:
                pairs.add((min(i, j), max(i, j)))
    return pairs


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 6), st.booleans())
def test_near_duplicates_are_those_of_the_plain_rule(seed, num, k, with_pictures):
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((num, 2)).astype(np.float32)
    label, split = rng.integers(0, 3, num), rng.choice(np.array(["a", "b"], object), num)
    table = rng.choice([0.2, 0.98, 0.99, 1.0], (num, num))
    table = np.maximum(table, table.T) if with_pictures else np.full((num, num), np.nan)
    duplicates = findings.near_duplicates(
        label,
        split,
        *nearest(embedding, k),
        alike=(lambda pairs: table[pairs[:, 0], pairs[:, 1]]) if with_pictures else None,
    )
    pairs = [(i, j) for i, j in duplicates.pairs.tolist()]
    assert len({*pairs}) == len(pairs)
    assert {*pairs} == plain_near_duplicates(
        embedding, label, split, k, lambda i, j: np.nan_to_num(table[i, j])
    )
    np.testing.assert_array_equal(duplicates.alike, [table[pair] for pair in pairs])
    same = duplicates.alike >= 0.99
    assert (np.diff(same.astype(int)) <= 0).all()  # these pairs come first
    for each in (same, ~same):
        assert (np.diff(duplicates.ratio[each]) >= 0).all()


def test_pictures_that_were_not_compared_are_counted():
    """Four pairs of two classes, ever farther apart; three are nearer than half the usual."""
    first = np.repeat(np.float32([1, 4, 9, 81]), 2)
    near = np.stack([first, 200 - first], axis=1)  # the usual distance around each is 100
    rows = np.array([[1, 7], [0, 7], [3, 7], [2, 7], [5, 7], [4, 7], [7, 0], [6, 0]])
    label, asked = np.arange(8), []

    def alike(pairs):
        asked.extend(pairs.tolist())
        return np.array([1.0, np.nan, 0.3])

    duplicates = findings.near_duplicates(label, label, rows, near, alike=alike, compared=3)
    assert asked == [[0, 1], [2, 3], [4, 5]]
    assert duplicates.pairs.tolist() == asked
    # One picture is missing, and one pair is beyond the limit.
    assert duplicates.num_not_compared == 2
    duplicates = findings.near_duplicates(
        label, label, rows, near, alike=lambda _: np.array([0, 0, 0, 1])
    )
    assert duplicates.pairs.tolist() == [[6, 7], *asked]
    np.testing.assert_allclose(duplicates.ratio, [0.81, 0.01, 0.04, 0.09])
    assert duplicates.num_not_compared == 0


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_images_for_anything(num):
    embedding, label = np.zeros((num, 2), np.float32), np.zeros(num, int)
    assert not len(findings.wrong_labels(embedding, label, np.zeros((num, 0), int)).row)
    positives, negatives = findings.pair_distances(embedding, label)
    assert positives.num_pairs == negatives.num_pairs == 0


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 12))
def test_pair_distances_are_all_pairs(seed, num, num_gallery):
    rng = np.random.default_rng(seed)
    queries, label = rng.standard_normal((num, 2)).astype(np.float32), rng.integers(0, 3, num)
    gallery, of_gallery = queries, label
    given_gallery = None
    if num_gallery:
        gallery = rng.standard_normal((num_gallery, 2)).astype(np.float32)
        of_gallery = rng.integers(0, 4, num_gallery)
        given_gallery = (gallery, of_gallery)
    square = ((queries[:, None].astype(np.float64) - gallery[None]) ** 2).sum(2)
    same = label[:, None] == of_gallery[None]
    counts = ~np.eye(num, dtype=bool) if not num_gallery else np.ones_like(same)
    both = findings.pair_distances(queries, label, given_gallery)
    for measured, kind in zip(both, (same, ~same), strict=True):
        expected = np.sort(square[kind & counts].astype(np.float32))
        assert measured.num_pairs == len(expected)
        np.testing.assert_array_equal(np.sort(measured.distance), expected)


def test_of_many_pairs_some_are_drawn():
    embedding, label = two_classes()
    positives, negatives = findings.pair_distances(embedding, label, most=15)
    assert (positives.num_pairs, negatives.num_pairs) == (40, 50)
    assert len(positives.distance) == len(negatives.distance) == 15
    assert set(positives.distance.tolist()) <= {1, 4, 9, 16}
    assert negatives.distance.min() >= 36


def test_confusions():
    label = np.array([1, 1, 1, 2, 2, 1, 2, 3])
    counted = [[6, 5], [6], [5, 6], [7, 6], []]
    assert findings.confusions(label, range(5), counted) == [
        findings.Confusion(1, 2, [(0, 6), (1, 6)]),
        findings.Confusion(2, 3, [(3, 7)]),
    ]
