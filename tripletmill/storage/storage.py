"""Files on local disks and in Cloud Storage buckets (gs://), written whole or not at all.

The functions take paths of both kinds unless they say otherwise. In a bucket, a folder is a prefix
of object names that ends at a slash. A missing file raises FileNotFoundError. If a disk, or in
spite of retries a network or a bucket fails, another OSError with an errno and a text is raised.
"""

import contextlib
import errno
import types
from collections.abc import Callable, Iterator
from typing import BinaryIO

from tripletmill.errors import UsageError
from tripletmill.storage import bucket, local
from tripletmill.storage.files import ANY, NOT_REGULAR, FileInfo, Replaced, problem_of_file

__all__ = ["FileInfo", "Replaced", "problem_of_file"]


def _module(path: str) -> types.ModuleType:
    return bucket if is_bucket(path) else local


def is_bucket(path: str) -> bool:
    """Whether a path lies in a bucket, which is any path that begins with gs://."""
    return path.startswith(bucket.SCHEME)


def require_local(path: str, what: str) -> None:
    """Raises UsageError for a path with a scheme, such as gs://; `what` names it in the message."""
    if "://" in path:
        raise UsageError(f"{what} {path}: only local paths are supported; copy or mount it first")


def require_new_file(path: str, what: str) -> None:
    """Raises UsageError for a folder or a path with a scheme, where no local file can be written.

    `what` names the path in the message.
    """
    require_local(path, what)
    if path.endswith("/") or is_folder(path):
        raise UsageError(f"{what} {path}: a folder; name a file in it")


def require_supported(path: str, what: str) -> None:
    """Raises UsageError for a path that is neither local nor of the form gs://BUCKET/NAME.

    `what` names the path in the message.
    """
    if is_bucket(path):
        if not bucket.split(path)[0]:
            raise UsageError(f"{what} {path}: no bucket; expected {bucket.SCHEME}BUCKET/NAME")
    elif "://" in path:
        raise UsageError(f"{what} {path}: local paths and {bucket.SCHEME} only; copy it first")


def absolute(path: str) -> str:
    """Returns the path from the root, without a slash at its end."""
    return _module(path).absolute(path)


def join(folder: str, *names: str) -> str:
    """Joins a folder and names with slashes."""
    return "/".join([folder.rstrip("/"), *names])


def stat(path: str) -> FileInfo:
    """Returns the size and the time of change of a file, and the checksums that a bucket states.

    Raises:
      OSError: there is no such file, or it is not a regular file.
    """
    return _module(path).stat(path)


def is_file(path: str) -> bool:
    """Whether there is a regular file, or an object, at this path."""
    try:
        stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR) or error.strerror == NOT_REGULAR:
            return False
        raise
    return True


def is_folder(path: str) -> bool:
    """Whether there is a folder at this path; in a bucket, whether any object lies below it."""
    return _module(path).is_folder(path)


def list_files(folder: str) -> list[FileInfo]:
    """Lists the files directly in a folder, sorted by path; none if there is no such folder."""
    return _module(folder).list_files(folder)


def is_empty(folder: str, *, but_for: str) -> bool:
    """Whether a folder is empty or missing, apart from an entry named `but_for`."""
    return _module(folder).is_empty(folder, but_for=but_for)


def make_folder(path: str) -> None:
    """Makes a folder and its parents unless they exist; in a bucket, does nothing."""
    _module(path).make_folder(path)


def open_read(path: str) -> BinaryIO:
    """Opens a file for reading and seeking; an object is downloaded a megabyte at a time."""
    return _module(path).open_read(path)


def read(path: str) -> bytes:
    """Reads a whole file."""
    return _module(path).read(path)


def read_range(path: str, start: int, length: int) -> bytes:
    """Reads `length` bytes from the offset `start`, in a bucket with one request.

    Fewer bytes, or none, are returned if the file ends before.
    """
    return _module(path).read_range(path, start, length)


def version(path: str) -> str | None:
    """Returns the version of an object, which changes whenever the object is written.

    It is "" if there is no such object, and None on a local disk, where `exclusive` keeps writers
    apart.
    """
    return _module(path).version(path)


@contextlib.contextmanager
def atomic_file(
    path: str, *, temporary: str | None = None, replaces: str | None = ANY
) -> Iterator[BinaryIO]:
    """A file to write, which appears at its path only if the block ends without an exception.

    Args:
      path: where the file appears.
      temporary: beginning of the path of the temporary file, on the same file system; by default
        `path`. It is ignored in a bucket, because an object appears only when it is complete.
      replaces: the `version` that may be replaced; by default any. It is ignored on a local disk.

    Raises:
      Replaced: the object in the bucket has another version.
      OSError: the file cannot be written.
    """
    with _module(path).atomic_file(path, temporary=temporary, replaces=replaces) as file:
        yield file


def write_file(path: str, data: bytes, *, replaces: str | None = ANY) -> None:
    """Writes a small file, whole or not at all; raises the errors of `atomic_file`."""
    with atomic_file(path, replaces=replaces) as file:
        file.write(data)


def atomic_folder(path: str) -> contextlib.AbstractContextManager[str]:
    """A folder of a local disk, which appears only if the block ends without an exception.

    If there is a folder at the path already, it is replaced as a whole. Hold a lock (`exclusive`)
    around the block, because two processes would write to the same temporary folder.

    Args:
      path: local path where the folder appears.

    Returns:
      A context manager that gives the temporary folder, which lies beside `path`.
    """
    return local.atomic_folder(path)


def remove(path: str) -> None:
    """Removes a file if there is one."""
    _module(path).remove(path)


def remove_tree(folder: str) -> None:
    """Removes a folder, if there is one, with everything in it."""
    _module(folder).remove_tree(folder)


def exclusive(
    path: str, what: str, *, waiting: Callable[[], None] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Holds a lock within the block; the lock is released however the process ends.

    Args:
      path: local path of the lock file, which is made if needed and stays.
      what: names the locked thing in the error message.
      waiting: called once if another process of this machine holds the lock; then the lock is
        waited for. Without it, a lock that is held is an error.

    Raises:
      UsageError: another process of this machine holds the lock, and `waiting` is None.
      OSError: the lock file cannot be written.
    """
    return local.exclusive(path, what, waiting=waiting)
