"""Splits and shards: pure and deterministic."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.errors import UsageError
from preprocessing.plan import ClassSummary, HashSplits, SortedSplits, make_plan

ALL_TRAIN = SortedSplits(cycle=["train"])


def summaries(counts, split=None):
    return {f"c{i:03d}": ClassSummary(n, frozenset([split]), i) for i, n in enumerate(counts)}


@settings(max_examples=200)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    images_per_shard=st.integers(1, 40),
)
def test_shards(counts, images_per_shard):
    plan = make_plan(summaries(counts), splits=ALL_TRAIN, images_per_shard=images_per_shard)
    total, shards = sum(counts), plan.num_shards["train"]
    assert shards == -(-total // images_per_shard)
    share = total / shards
    in_order = []
    for name, planned in plan.classes.items():
        places = [plan.shard_of(name, position) for position in range(planned.count)]
        if planned.count <= share:
            assert len(set(places)) == 1  # a class lies in one shard
        in_order += places
    assert in_order == sorted(in_order)  # classes contiguous
    assert set(in_order) == set(range(shards))  # no shard empty
    assert max(in_order.count(shard) for shard in range(shards)) < 2 * share + 1


def test_labels_are_global_and_sorted_by_name():
    plan = make_plan(
        {name: ClassSummary(3, frozenset([None]), 0) for name in ["b", "a", "ä", "B"]},
        splits=SortedSplits(cycle=["train", "test"]),
        images_per_shard=10,
    )
    found = {name: (c.label, c.split) for name, c in plan.classes.items()}
    assert found == {"B": (0, "train"), "a": (1, "test"), "b": (2, "train"), "ä": (3, "test")}


def test_hash_splits_are_stable_and_near_their_shares():
    names = [f"class {i}" for i in range(2000)]
    rule = HashSplits({"train": 0.8, "val": 0.1, "test": 0.1})
    splits = rule.assign(names)
    assert splits.items() >= rule.assign(names[::2]).items()  # fewer classes, same splits
    shares = {s: list(splits.values()).count(s) / 2000 for s in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)
    # Pinned: another hash would change the splits of everyone's data.
    held_out = {name: splits[name] for name in names[:30] if splits[name] != "train"}
    assert held_out == {
        "class 8": "test",
        "class 11": "val",
        "class 15": "test",
        "class 26": "val",
        "class 27": "test",
    }


def test_grocery_rule():
    rule = SortedSplits(["train", "test"] * 4 + ["val", "test"])
    splits = list(rule.assign([f"{i:02d}" for i in range(81)]).values())
    assert all(split == "test" for split in splits[1::2])
    assert splits[0::2].count("val") == 8
    assert splits.count("train") == 33


def test_splits_given_by_the_input_win():
    plan = make_plan(summaries([2, 3], "holdout"), splits=ALL_TRAIN, images_per_shard=10)
    assert dict(plan.num_images) == {"holdout": 5}


def test_fingerprint_sees_every_image_and_no_order():
    a, b = ClassSummary(1, frozenset([None]), 5), ClassSummary(1, frozenset([None]), 7)
    assert a + b == b + a
    one = make_plan({"x": a + b}, splits=ALL_TRAIN, images_per_shard=10)
    other = make_plan({"x": a + a}, splits=ALL_TRAIN, images_per_shard=10)
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("classes", "splits", "message"),
    [
        ({}, ALL_TRAIN, "no images"),
        (summaries([3, 3]), HashSplits(), "gets none of the 2 classes"),
        ({"x": ClassSummary(3, frozenset([None, "a"]), 0)}, ALL_TRAIN, "x.*empty for some"),
        ({"x": ClassSummary(3, frozenset("ab"), 0)}, ALL_TRAIN, r"x.*several splits \(a, b\)"),
        (summaries([3], "a/b"), ALL_TRAIN, "'a/b': letters, digits"),
    ],
)
def test_errors(classes, splits, message):
    with pytest.raises(UsageError, match=message):
        make_plan(classes, splits=splits, images_per_shard=10)


@pytest.mark.parametrize("shares", [3, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.0, "b": 1.0}])
def test_wrong_shares(shares):
    with pytest.raises(UsageError, match="add up to 1"):
        HashSplits(shares)


@pytest.mark.parametrize("cycle", [[], "train"])
def test_wrong_cycle(cycle):
    with pytest.raises(UsageError, match="a list of splits"):
        SortedSplits(cycle)
