"""Listings and plans are pure and deterministic."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.splits import HashSplits, QueryGallery, SortedSplits
from preprocessing.writing.plan import (
    ClassSummary,
    KeptImages,
    add_up,
    make_listing,
    make_plan,
    summarize,
)
from tripletmill.errors import UsageError

ALL_TRAIN = SortedSplits(cycle=["train"])


def kept(counts, split="train"):
    return {(f"c{i:03d}", split): KeptImages(n) for i, n in enumerate(counts)}


def images(name, count, **more):
    return [ImageRef(f"{name}/{i:03d}.png", "", name, 1, **more) for i in range(count)]


@settings(max_examples=200)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    images_per_shard=st.integers(1, 40),
)
def test_shards(counts, images_per_shard):
    plan = make_plan(kept(counts), splits=ALL_TRAIN, images_per_shard=images_per_shard)
    total, shards = sum(counts), plan.num_shards["train"]
    assert shards == -(-total // images_per_shard)
    share = total / shards
    in_order = []
    for name, planned in plan.classes.items():
        placed = plan.place(name, "train", images(name, planned.pieces["train"].count)[::-1])
        places = [shard for (_, shard), refs in placed for _ in refs]
        names = [ref.source_id for _, refs in placed for ref in refs]
        assert names == sorted(names)
        if planned.pieces["train"].count <= share:
            assert len(set(places)) == 1  # each class lies in one shard
        whole = plan.whole_shard(name, "train")
        assert whole is None if len(set(places)) > 1 else whole in (None, places[0])
        in_order += places
    assert in_order == sorted(in_order)  # classes are contiguous
    assert set(in_order) == set(range(shards))  # no shard is empty
    assert max(in_order.count(shard) for shard in range(shards)) < 2 * share + 1


@settings(max_examples=100)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    copies=st.integers(0, 5),
    images_per_shard=st.integers(1, 20),
)
def test_query_and_gallery(counts, copies, images_per_shard):
    rule = QueryGallery(classes=SortedSplits(["test"]), query_share=0.25)
    equal = {
        f"c{i:03d}": frozenset(f"c{i:03d}/{j:03d}.png" for j in range(min(copies, n)))
        for i, n in enumerate(counts)
    }
    found = {(f"c{i:03d}", "test"): KeptImages(n, equal[f"c{i:03d}"]) for i, n in enumerate(counts)}
    plan = make_plan(found, splits=rule, images_per_shard=images_per_shard)
    placed: dict[tuple[str, int], int] = {}
    for i, count in enumerate(counts):
        name = f"c{i:03d}"
        queries = 0
        for (split, shard), refs in plan.place(name, "test", images(name, count)):
            placed[split, shard] = placed.get((split, shard), 0) + len(refs)
            if split == "query":
                queries += len(refs)
                assert not equal[name] & {ref.source_id for ref in refs}
        assert queries == rule.num_queries(count, len(equal[name]))
    assert dict(plan.num_shards) == {
        split: len({k for s, k in placed if s == split}) for split in plan.num_shards
    }
    assert sum(placed.values()) == sum(counts)


def test_labels_are_global_and_sorted_by_name():
    found = {(n, s): KeptImages(3) for n, s in zip("baäB", ("t", "u", "u", "t"), strict=True)}
    plan = make_plan(found, splits=ALL_TRAIN, images_per_shard=10)
    labels = {name: (c.label, list(c.pieces)) for name, c in plan.classes.items()}
    assert labels == {"B": (0, ["t"]), "a": (1, ["u"]), "b": (2, ["t"]), "ä": (3, ["u"])}


def test_small_classes_take_no_label():
    plan = make_plan(kept([2, 3, 1, 5]), splits=ALL_TRAIN, images_per_shard=10, min_images=3)
    assert {name: c.label for name, c in plan.classes.items()} == {"c001": 0, "c003": 1}
    assert plan.too_small == {"c000": 2, "c002": 1}
    with pytest.raises(UsageError, match="none of the 2 classes has min_images = 4"):
        make_plan(kept([2, 3]), splits=ALL_TRAIN, images_per_shard=10, min_images=4)


def listing(files, rule=ALL_TRAIN):
    return make_listing(summarize(files), rule)


def test_splits_given_by_the_input_win():
    files = images("x", 2, split="holdout") + images("y", 1, split="query")
    files += [ImageRef("y/z", "", "y", 1, split="gallery")]
    found = listing(files)
    assert {found.with_split(ref).split for ref in files} == {"holdout", "query", "gallery"}
    assert listing(images("x", 1)).with_split(images("x", 1)[0]).split == "train"


def test_fingerprint_sees_every_image_and_no_order():
    files = images("x", 3) + images("y", 2, modified=5)
    one = listing(files)
    assert one == listing(files[::-1])
    parts = [summarize(files[:2]), summarize(files[2:])]
    assert add_up([parts[0]["x"], parts[1]["x"]]) == summarize(files)["x"]
    for other in (
        files[1:],
        [*files[1:], ImageRef("x/000.png", "", "x", 2)],
        [*files[1:], ImageRef("x/000.png", "", "x", 1, md5="0")],
        [*files[1:], ImageRef("x/000.png", "", "x", 1, extra=("a",))],
    ):
        assert listing(other).fingerprint != one.fingerprint
    later = listing(images("x", 3) + images("y", 2, modified=6))
    assert later.fingerprint == one.fingerprint
    assert later.versions != one.versions
    assert (one.total.newest, later.total.newest) == (5, 6)


def test_what_is_lost_is_counted():
    files = [*images("x", 3), Rejected("a", "x", "bad"), Rejected("b", "", "hidden", lost=False)]
    total = listing(files).total
    assert (total.count, total.lost, total.example) == (3, 1, "bad")


@pytest.mark.parametrize(
    ("files", "rule", "message"),
    [
        ([], ALL_TRAIN, "no images in the input$"),
        ([Rejected("a", "x", "bad")], ALL_TRAIN, "no images.*1 cannot be used: bad"),
        (images("x", 3) + images("y", 3), HashSplits(), "gets none of the 2 classes"),
        (images("x", 1) + images("x", 1, split="a"), ALL_TRAIN, "x.*empty for some"),
        (images("x", 1, split="a") + images("x", 1, split="b"), ALL_TRAIN, r"several .*\(a, b\)"),
        (images("x", 1, split="a") + images("x", 1, split="query"), ALL_TRAIN, "several"),
        (images("x", 1, split="a/b"), ALL_TRAIN, "'a/b': a name may have letters, digits"),
    ],
)
def test_errors(files, rule, message):
    with pytest.raises(UsageError, match=message):
        listing(files, rule)


def test_empty_summary():
    assert add_up([]) == ClassSummary()
    assert ClassSummary().count == 0
