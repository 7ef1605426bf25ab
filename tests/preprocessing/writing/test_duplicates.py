"""Which images of a group of equal images are kept."""

import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.sources.references import ImageRef
from preprocessing.writing.duplicates import (
    Copy,
    decide,
    full_md5,
    middle_hash,
    read_groups,
    write_groups,
)


def copies(text):
    """Parses a text such as '1:a/train 2:b/test' into copies."""
    found = []
    for word in text.split():
        source_id, _, rest = word.partition(":")
        name, _, split = rest.partition("/")
        found.append(Copy(source_id, name, split))
    return found


@pytest.mark.parametrize(
    ("text", "kind", "kept"),
    [
        ("2:a/train 1:a/train 3:a/train", "within class", "1"),
        ("1:a/train 2:b/train", "across classes", ""),
        ("1:a/test 2:a/test 3:b/test", "across classes", ""),
        ("1:a/train 2:b/test", "across splits", "2"),
        ("1:a/train 3:b/test 2:b/test", "across splits", "2"),
        ("1:a/train 2:b/test 3:c/test", "across splits", ""),
        ("1:a/val 2:b/test", "across splits", "2"),
        ("1:a/train 2:b/val", "across splits", "2"),
        ("1:a/query 2:a/gallery", "across splits", "2"),
        ("1:a/holdout 2:b/train", "across splits", "1"),
        ("1:a/validation 2:b/val", "across splits", "2"),
    ],
)
def test_decide(text, kind, kept):
    group = decide(copies(text), "drop")
    assert group.kind == kind
    assert "".join(copy.source_id for copy in group.copies if copy.kept) == kept
    for policy in ("keep", "error"):
        group = decide(copies(text), policy)
        assert (group.kind, all(copy.kept for copy in group.copies)) == (kind, True)


@given(
    st.lists(
        st.builds(Copy, st.text(max_size=3), st.sampled_from("ab"), st.sampled_from(["t", "u"])),
        min_size=2,
        max_size=6,
        unique_by=lambda copy: copy.source_id,
    ),
    st.randoms(),
)
def test_any_order_and_back_from_a_file(found, random):
    group = decide(found, "drop")
    random.shuffle(found)
    assert decide(found, "drop") == group
    assert read_groups(write_groups([group])) == [group]
    kept = [copy for copy in group.copies if copy.kept]
    assert len(kept) <= 1


def test_hashes(tmp_path):
    def ref(name, data):
        (tmp_path / name).write_bytes(data)
        return ImageRef(name, str(tmp_path / name), "c", len(data))

    small = [ref("a", b"BMc"), ref("b", b"BMc"), ref("c", b"BMd"), ref("empty", b"")]
    hashes = [middle_hash(r) for r in small]
    assert hashes[0] == hashes[1]
    assert len({*hashes}) == 3
    assert full_md5(small[0]) == hashlib.md5(b"BMc").hexdigest()
    # These files are equal, but they cannot be images.
    assert full_md5(small[3]) is full_md5(ref("page", b"<html>not found")) is None
    large = [bytearray(100_000) for _ in range(3)]
    large[1][0] = large[2][50_000] = 1
    one, other_start, other_middle = (middle_hash(ref(f"{i}", d)) for i, d in enumerate(large))
    assert one == other_start != other_middle
    gone = ImageRef("gone", str(tmp_path / "gone"), "c", 3)
    assert middle_hash(gone) is full_md5(gone) is None
    known = dataclasses.replace(small[0], md5="00000000000000ff" + "0" * 16)
    assert (middle_hash(known), full_md5(known)) == (255, known.md5)
    assert full_md5(dataclasses.replace(small[3], md5=known.md5)) is None
