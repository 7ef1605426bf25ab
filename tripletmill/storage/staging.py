"""Shards in a bucket are copied to a local folder, once for all processes of a host."""

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import google_crc32c

from tripletmill.cli.progress import Progress, byte_size, duration
from tripletmill.errors import UsageError
from tripletmill.storage import bucket, storage
from tripletmill.storage.files import FileInfo


def default_folder() -> str:
    """The folder for a user's copies: tripletmill in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "tripletmill")


def stage_shards(
    shards: Sequence[FileInfo], target: str, *, name: str, if_no_room: str, if_damaged: str
) -> list[str]:
    """Copies shards from a bucket to a local folder and returns the paths of the copies.

    A shard keeps its file name. It appears under this name once all its bytes have arrived and have
    the right CRC-32C. A copy that already lies in the folder with the right size is trusted and not
    downloaded again. A call that is stopped at any moment can be repeated: only the shards that
    were not complete are downloaded again. If several processes of a host copy to one folder, one
    of them downloads and the others wait.

    Args:
      shards: path (gs://), size and CRC-32C of each shard, in order; their file names differ. A
        CRC-32C of None is not compared. Without shards, the result is empty.
      target: the local folder, which is made if needed. A file in it that has the name of a shard
        must be a copy of this shard.
      name: what the shards are called in messages, such as the name of a split.
      if_no_room: what a user can do if the folder cannot be written or the disk is full, for the
        error message.
      if_damaged: what a user can do if a shard arrives damaged again, for the error message.

    Returns:
      Paths of the copies, in the order of `shards`.

    Raises:
      UsageError: the disk is full, or the folder cannot be written.
      OSError: a shard arrived damaged, or the bucket or the network fails in spite of retries.
    """
    copies = [_Copy(shard, target, if_no_room, if_damaged) for shard in shards]
    with Progress() as progress, contextlib.ExitStack() as held:
        missing = _missing(copies)
        if missing:
            with _writing(target, if_no_room):
                storage.make_folder(target)
                lock = storage.exclusive(
                    storage.join(target, ".lock"),
                    target,
                    waiting=lambda: progress.line(
                        f"staging {name}: another process is at work in {target}; waiting for it"
                    ),
                )
                held.enter_context(lock)
                # A killed process had not completed these files.
                for file in storage.list_files(target):
                    if file.path.endswith(".partial"):
                        storage.remove(file.path)
            missing = _missing(copies)
        if missing:
            _require_room(missing, target, if_no_room)
            try:
                _download(copies, missing, name, progress)
            except UsageError:
                # If the disk is full, this error says how much space is needed.
                _require_room(_missing(missing), target, if_no_room)
                raise
        progress.line(
            f"staged {name}: {len(copies)} shards, {byte_size(_size(copies))} in {target},"
            f" {len(copies) - len(missing)} already there"
        )
    return [copy.path for copy in copies]


class _Copy:
    """The copy of a shard; it takes the shard's bytes and appears when they are complete and right.

    Attributes:
      source: path, size and CRC-32C of the shard in the bucket.
      path: local path of the copy.
      received: number of bytes that have arrived.
      finished: whether this process has written the copy to its path.
    """

    def __init__(self, source: FileInfo, target: str, if_no_room: str, if_damaged: str) -> None:
        self.source = source
        self.path = storage.join(target, os.path.basename(source.path))
        self.received = 0
        self.finished = False
        self._if_no_room, self._if_damaged = if_no_room, if_damaged
        self._received_crc32c = 0
        self._closed = False
        self._file: BinaryIO | None = None
        # `write` holds the lock, so that no bytes are taken once `close` has returned.
        self._lock = threading.Lock()
        self._open_file = contextlib.ExitStack()

    def tell(self) -> int:
        return self.received

    def write(self, data: bytes) -> int:
        """Takes the next bytes.

        Raises:
          UsageError: the disk is full, or the folder cannot be written.
          OSError: the bytes are complete, and they are not the shard's.
          ValueError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path}: nobody waits for it any more")
            with _writing(self.path, self._if_no_room):
                # The file is opened late, because there may be more shards than can be open.
                if self._file is None:
                    self._file = self._open_file.enter_context(storage.atomic_file(self.path))
                self._file.write(data)
            self.received += len(data)
            self._received_crc32c = google_crc32c.extend(self._received_crc32c, data)
            is_right = self.source.crc32c in (None, self._received_crc32c)
            if self.received == self.source.size and is_right:
                with _writing(self.path, self._if_no_room):
                    self._open_file.close()
                self.finished = True
            elif self.received >= self.source.size:
                self.require_finished()
        return len(data)

    def require_finished(self) -> None:
        """Raises OSError unless the copy is finished."""
        if not self.finished:
            raise OSError(
                errno.EIO,
                f"arrived damaged, {self.received:,} bytes of {self.source.size:,}, CRC-32C"
                f" {self._received_crc32c} (if this happens again, {self._if_damaged})",
                self.source.path,
            )

    def close(self) -> None:
        """Refuses further bytes, and removes what was written of a copy that is not finished."""
        # A thread that writes one piece after another could hold the lock until it has written all,
        # so it is told before the lock is waited for.
        self._closed = True
        with self._lock, contextlib.suppress(Exception), self._open_file:
            raise InterruptedError  # `atomic_file` removes its temporary file after an error


def _missing(copies: Sequence[_Copy]) -> list[_Copy]:
    """The copies that do not lie on the disk with the right size."""

    def is_there(copy: _Copy) -> bool:
        try:
            return storage.stat(copy.path).size == copy.source.size
        except OSError:
            return False

    return [copy for copy in copies if not is_there(copy)]


def _download(
    copies: Sequence[_Copy], missing: Sequence[_Copy], name: str, progress: Progress
) -> None:
    """Downloads the missing ones of all copies; raises errors as `stage_shards`."""
    start, total = time.monotonic(), _size(copies)
    before = total - _size(missing)

    def watch() -> None:
        received = sum(copy.received for copy in missing)
        finished = len(copies) - sum(not copy.finished for copy in missing)
        rate = received / (time.monotonic() - start)
        left = duration((total - before - received) / rate) if rate else ""
        progress.update(
            f"staging {name}: {byte_size(before + received)} of {byte_size(total)},"
            f" {finished} of {len(copies)} shards"
            + (f", {byte_size(rate)}/s, {left} left" if rate else "")
        )

    try:
        with contextlib.ExitStack() as stack:
            for copy in missing:
                stack.callback(copy.close)
                if not copy.source.size:
                    copy.write(b"")  # an empty object is not downloaded, so nobody else writes
            objects = [(copy.source.path, copy) for copy in missing if copy.source.size]
            bucket.download(objects, watch=watch)
            for copy in missing:
                copy.require_finished()
    except OSError as error:
        text = f"{error.strerror}; the same command goes on from there"
        raise OSError(error.errno, text, error.filename) from error


@contextlib.contextmanager
def _writing(path: str, if_no_room: str) -> Iterator[None]:
    """Turns errors of the disk into UsageErrors."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); {if_no_room}") from error


def _require_room(missing: Sequence[_Copy], target: str, if_no_room: str) -> None:
    """Raises UsageError if the disk has no room for the missing copies."""
    needed, free = _size(missing), shutil.disk_usage(target).free
    if needed > free:
        text = f"{byte_size(needed)} needed, {byte_size(free)} free"
        raise UsageError(f"{target}: {text}; {if_no_room}")


def _size(copies: Sequence[_Copy]) -> int:
    return sum(copy.source.size for copy in copies)
