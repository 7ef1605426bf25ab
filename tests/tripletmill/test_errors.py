"""The text of exceptions."""

import pytest

from tripletmill.errors import UsageError, first_line, one_line, require_positive


def test_first_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("  \n")) == first_line(ValueError()) == "ValueError"


def test_one_line():
    text = "no such\n  split\n  In call to configurable 'train' (<function train at 0x7f>)"
    assert one_line(UsageError(text)) == "no such split"


def test_positive():
    require_positive("train", steps=1, eval_every=10)
    with pytest.raises(UsageError, match=r"train\.eval_every 0: 1 or more"):
        require_positive("train", steps=1, eval_every=0)
