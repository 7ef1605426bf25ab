"""The errors of single files are told from those of a disk or a network."""

import errno
import os

import pytest

from tripletmill.storage import storage
from tripletmill.storage.files import problem_of_file


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.ENOENT, "cannot be read: No such file or directory"),
        (errno.EACCES, "cannot be read: Permission denied"),
        (errno.EIO, None),
        (errno.ENOSPC, None),
        (errno.ETIMEDOUT, None),
    ],
)
def test_problem_of_a_file(number, problem):
    assert problem_of_file(OSError(number, os.strerror(number), "a")) == problem


def test_files_that_are_not_regular(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    problems = {"pipe": "not a regular file", "folder": "Is a directory"}
    for name, problem in problems.items():
        for read in (storage.open_read, storage.read):
            with pytest.raises(OSError, match=problem) as caught:
                read(str(tmp_path / name))
            assert problem_of_file(caught.value) == f"cannot be read: {problem}"
        assert not storage.is_file(str(tmp_path / name))
