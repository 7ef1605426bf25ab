"""Where files lie: local disks and Cloud Storage buckets (gs://), written whole or not at all.

Everything takes paths of both kinds. A folder of a bucket is what its objects' names have in
common up to a slash. Errors are OSErrors: FileNotFoundError, and for a disk, a network or a bucket
in trouble (after retries) another one with a number and a text.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import BinaryIO

from tripletmill.errors import UsageError
from tripletmill.storage import bucket, local
from tripletmill.storage.files import ANY, NOT_REGULAR, FileInfo, Replaced, problem_of_file

__all__ = ["FileInfo", "Replaced", "problem_of_file"]


def _of(path: str) -> types.ModuleType:
    return bucket if is_bucket(path) else local


def is_bucket(path: str) -> bool:
    """Whether a path lies in a bucket."""
    return path.startswith(bucket.SCHEME)


def require_local(path: str, what: str) -> None:
    """Raises UsageError for a path of another file system, such as gs://."""
    if "://" in path:
        raise UsageError(f"{what} {path}: only local paths are supported; copy or mount it first")


def require_new_file(path: str, what: str) -> None:
    """Raises UsageError for a path where no local file can be written: of a folder, or gs://."""
    require_local(path, what)
    if path.endswith("/") or is_folder(path):
        raise UsageError(f"{what} {path}: a folder; name a file in it")


def require_supported(path: str, what: str) -> None:
    """Raises UsageError for a path that is neither local nor gs://BUCKET/NAME."""
    if is_bucket(path):
        if not bucket.split(path)[0]:
            raise UsageError(f"{what} {path}: no bucket; expected {bucket.SCHEME}BUCKET/NAME")
    elif "://" in path:
        raise UsageError(f"{what} {path}: local paths and {bucket.SCHEME} only; copy it first")


def absolute(path: str) -> str:
    """The path from the root, without a slash at its end."""
    return _of(path).absolute(path)


def join(folder: str, *names: str) -> str:
    """The path of what lies in a folder."""
    return "/".join([folder.rstrip("/"), *names])


def stat(path: str) -> FileInfo:
    """Size and version of a file."""
    return _of(path).stat(path)


def is_file(path: str) -> bool:
    """Whether there is such a file."""
    try:
        stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.strerror == NOT_REGULAR:
            return False
        raise
    return True


def is_folder(path: str) -> bool:
    """Whether there is such a folder; in a bucket, whether any object lies below it."""
    return _of(path).is_folder(path)


def list_files(folder: str) -> list[FileInfo]:
    """Files directly in a folder, by path; none if it does not exist."""
    return _of(folder).list_files(folder)


def is_empty(folder: str, *, but_for: str) -> bool:
    """Whether nothing lies in a folder, or but one entry of that name."""
    return _of(folder).is_empty(folder, but_for=but_for)


def make_folder(path: str) -> None:
    """Makes a folder and those above it; a bucket needs none."""
    _of(path).make_folder(path)


def open_read(path: str) -> BinaryIO:
    """A file to read, with seek; from a bucket, a megabyte at a time."""
    return _of(path).open_read(path)


def read(path: str) -> bytes:
    """All of a file."""
    return _of(path).read(path)


def read_range(path: str, start: int, length: int) -> bytes:
    """Some bytes of a file, fewer or none where it ends before; from a bucket, in one request."""
    return _of(path).read_range(path, start, length)


def version(path: str) -> str | None:
    """What tells an object of a bucket from any later one of its name; "" if there is none.

    None on a local disk, where writers are kept apart by `exclusive`.
    """
    return _of(path).version(path)


@contextlib.contextmanager
def atomic_file(
    path: str, *, temporary: str | None = None, replaces: str | None = ANY
) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends well, and not before.

    Args:
      path: where it appears.
      temporary: first part of the name that it is written under, on the same file system; by
        default that of `path`. Not used for a bucket, where the final object is uploaded at once.
      replaces: the `version` that may be replaced; by default any.

    Raises:
      Replaced: in a bucket, there is another version by now.
    """
    with _of(path).atomic_file(path, temporary=temporary, replaces=replaces) as file:
        yield file


def write_file(path: str, data: bytes, *, replaces: str | None = ANY) -> None:
    """Writes a small file, whole or not at all; errors as atomic_file."""
    with atomic_file(path, replaces=replaces) as file:
        file.write(data)


def atomic_folder(path: str) -> contextlib.AbstractContextManager[str]:
    """A folder of a local disk that appears when the block ends well, and not before.

    Where one of that name lies already, it is replaced whole. Hold a lock around it
    (`exclusive`): two processes would write into one folder.

    Args:
      path: where it appears.

    Returns:
      A context that gives the folder to write into, which lies beside `path`.
    """
    return local.atomic_folder(path)


def remove(path: str) -> None:
    """Removes a file, if it is there."""
    _of(path).remove(path)


def remove_tree(folder: str) -> None:
    """Removes a folder with all that is in it, if it is there."""
    _of(folder).remove_tree(folder)


def exclusive(
    path: str, what: str, *, waiting: Callable[[], None] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Holds a lock file of a local disk; it is free when the process ends, however it ends.

    Args:
      path: the lock file.
      what: who is to blame, for the error.
      waiting: called once where another process of this machine holds it, which is then waited
        for; without it, that is an error.

    Raises:
      UsageError: another process of this machine holds it.
    """
    return local.exclusive(path, what, waiting=waiting)
