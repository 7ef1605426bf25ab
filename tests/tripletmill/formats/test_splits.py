"""The names of splits that have a meaning."""

from tripletmill.formats.splits import GALLERY, HELD_OUT, QUERY


def test_order():
    """The split for training comes first, and the one for the last evaluation comes last."""
    assert (HELD_OUT[0], HELD_OUT[-1]) == ("train", "test")
    assert {QUERY, GALLERY, "val"} < {*HELD_OUT}
    assert len({*HELD_OUT}) == len(HELD_OUT)
