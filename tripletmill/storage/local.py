"""Files on local disks; `tripletmill.storage.storage` documents the functions."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat as modes
import uuid
from collections.abc import Callable, Iterator
from typing import BinaryIO

from tripletmill.errors import UsageError
from tripletmill.storage.files import NOT_REGULAR, FileInfo

# Bytes. Each write to the file waits for Python's lock, so records are collected first.
WRITE_BUFFER = 2**20


def absolute(path: str) -> str:
    return os.path.abspath(path)


def stat(path: str) -> FileInfo:
    status = os.stat(path)
    if not modes.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, path)
    return FileInfo(path, status.st_size, status.st_mtime_ns)


def is_folder(path: str) -> bool:
    return os.path.isdir(path)


def list_files(folder: str) -> list[FileInfo]:
    try:
        with os.scandir(folder) as entries:
            return [stat(path) for path in sorted(e.path for e in entries if e.is_file())]
    except FileNotFoundError:
        return []


def is_empty(folder: str, *, but_for: str) -> bool:
    try:
        return not set(os.listdir(folder)) - {but_for}
    except FileNotFoundError:
        return True


def make_folder(path: str) -> None:
    os.makedirs(path, exist_ok=True)


def open_read(path: str) -> BinaryIO:
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    # Without O_NONBLOCK, opening a named pipe would wait for ever.
    number = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(number).st_mode
    if modes.S_ISREG(mode):
        return number
    os.close(number)
    if modes.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, NOT_REGULAR, path)


def read(path: str) -> bytes:
    return read_range(path, 0, os.stat(path).st_size + 1)


def read_range(path: str, start: int, length: int) -> bytes:
    # This takes half as long as a file object, which matters if an image takes 0.2 ms altogether.
    number = _open_regular(path)
    try:
        data = os.pread(number, length, start)
        while len(data) < length and (
            more := os.pread(number, length - len(data), start + len(data))
        ):
            data += more
        return data
    finally:
        os.close(number)


def version(path: str) -> str | None:
    return None


@contextlib.contextmanager
def atomic_file(path: str, *, temporary: str | None, replaces: str | None) -> Iterator[BinaryIO]:
    # Each attempt has its own name, because two processes must not write to one file.
    temporary = f"{temporary or path}.{uuid.uuid4().hex}.partial"
    try:
        with open(temporary, "wb", buffering=WRITE_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


@contextlib.contextmanager
def atomic_folder(path: str) -> Iterator[str]:
    # The names are the same for each attempt, so that what a killed process left is found.
    made, former = f"{path}.partial", f"{path}.former"
    if os.path.isdir(former) and not os.path.exists(path):
        os.rename(former, path)  # a process was killed between the two renames below
    for left in (made, former):
        remove_tree(left)
    os.mkdir(made)
    try:
        yield made
        _sync(made)
        if os.path.exists(path):
            os.rename(path, former)
        os.rename(made, path)
    except BaseException:
        remove_tree(made)
        raise
    remove_tree(former)


def _sync(folder: str) -> None:
    """Waits until the content of all files below a folder is on the disk."""
    for below, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(below, name), "rb") as file:
                os.fsync(file.fileno())


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def remove_tree(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def exclusive(path: str, what: str, *, waiting: Callable[[], None] | None) -> Iterator[None]:
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise UsageError(f"{what}: another process is writing there") from None
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
