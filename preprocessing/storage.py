"""Where files lie: local disks, written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from preprocessing.errors import UsageError


def require_local(path: str, what: str) -> None:
    """Raises UsageError for a path of another file system, such as gs://."""
    if "://" in path:
        raise UsageError(f"{what} {path}: only local paths are supported; copy or mount it first")


@contextlib.contextmanager
def atomic_file(path: str, *, temporary: str | None = None) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends well, and not before.

    Args:
      path: where it appears.
      temporary: where it is written, on the same file system; beside it by default.
    """
    temporary = temporary or f"{path}.partial"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    os.replace(temporary, path)


def write_file(path: str, data: bytes) -> None:
    """Writes a small file, whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)
