"""Where files lie: local disks, written whole or not at all."""

import contextlib
import fcntl
import os
import uuid
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
      temporary: first part of the name that it is written under, on the same file system; by
        default that of `path`.
    """
    # A name of its own for every attempt: two processes must not write into one file.
    temporary = f"{temporary or path}.{uuid.uuid4().hex}.partial"
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


@contextlib.contextmanager
def exclusive(path: str, what: str) -> Iterator[None]:
    """Holds a lock file; it is free again when the process ends, however it ends.

    Raises:
      UsageError: another process of this machine holds it.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{what}: another process is writing there") from None
        yield
