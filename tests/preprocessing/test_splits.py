"""The rules that assign classes to splits."""

import pytest

from preprocessing.splits import HashSplits, QueryGallery, SortedSplits
from tripletmill.errors import UsageError


def test_hash_splits_are_stable_and_near_their_shares():
    names = [f"class {i}" for i in range(2000)]
    rule = HashSplits({"train": 0.8, "val": 0.1, "test": 0.1})
    splits = rule.assign(names)
    assert splits.items() >= rule.assign(names[::2]).items()  # with fewer classes, the splits stay
    shares = {s: list(splits.values()).count(s) / 2000 for s in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)
    # These values are fixed: another hash would change the splits of all users' data.
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


@pytest.mark.parametrize(
    ("count", "copies", "queries"),
    [(1, 0, 0), (2, 0, 1), (3, 0, 1), (10, 0, 2), (10, 9, 1), (10, 10, 0), (2, 2, 0), (100, 0, 20)],
)
def test_number_of_queries(count, copies, queries):
    assert QueryGallery(query_share=0.2).num_queries(count, copies) == queries


def test_order_of_queries():
    names = [f"{i}.png" for i in range(50)]
    order = QueryGallery.order(names, frozenset(["7.png"]))
    assert order[-1] == "7.png"
    assert sorted(order) == sorted(names)
    assert order == QueryGallery.order(names[::-1], frozenset(["7.png"]))
    assert order[:4] != names[:4]


@pytest.mark.parametrize("shares", [3, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.0, "b": 1.0}])
def test_wrong_shares(shares):
    with pytest.raises(UsageError, match="add up to 1"):
        HashSplits(shares)


@pytest.mark.parametrize("cycle", [[], "train"])
def test_wrong_cycle(cycle):
    with pytest.raises(UsageError, match="a list of splits"):
        SortedSplits(cycle)


def test_wrong_query_gallery():
    for share in (0, 1, "a"):
        with pytest.raises(UsageError, match="query_share: between 0 and 1"):
            QueryGallery(query_share=share)
    with pytest.raises(UsageError, match=r"@HashSplits\(\) or @SortedSplits\(\), not"):
        QueryGallery(classes=HashSplits)
    with pytest.raises(UsageError, match="no class is in 'test', only in val"):
        QueryGallery(classes=SortedSplits(["val"])).assign(["a"])
