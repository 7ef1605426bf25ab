"""References to images, and why a file is left out."""

import dataclasses
import errno
import os
import pickle

import pytest

from preprocessing.sources.references import ImageRef, printable, reason_unreadable, shortened
from tripletmill.errors import UsageError


def test_a_pickled_reference_keeps_every_field():
    ref = ImageRef("a", "/a", "c", 1, 2, "train", "00ff", 3, "image", ("x", None))
    defaults = {field.name: field.default for field in dataclasses.fields(ImageRef)}
    assert all(getattr(ref, name) != default for name, default in defaults.items())
    assert pickle.loads(pickle.dumps(ref)) == ref


def test_printable():
    assert printable("Zürich") == "Zürich"
    assert printable(os.fsdecode("ü".encode() + b"\xff.png")) == "ü\\xff.png"


def test_shortened():
    assert shortened([]) == ""
    assert shortened(["a", "b"]) == "a, b"
    line = shortened(f"name {i}" for i in range(1000))
    assert len(line) <= 200
    assert line.startswith("name 0, name 1")
    assert line.endswith(" ...")


def test_a_file_is_left_out_only_for_its_own_fault():
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/a")
    assert reason_unreadable("/a", error) == "cannot be read: No such file or directory"
    with pytest.raises(UsageError, match=r"^/a: Input/output error; run the same command again"):
        reason_unreadable("/a", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(UsageError, match=r"^/a: connection lost; run"):
        reason_unreadable("/a", OSError("connection lost"))
