"""Shards of a data set in a bucket, brought to a local folder once for all processes of a host."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import google_crc32c

from tripletmill.cli.progress import Progress, duration
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, DatasetInfo
from tripletmill.storage import bucket, storage

_INSTEAD = "set another Reading.folder, or Reading.stream = True to read by range"
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def default_folder() -> str:
    """Where a user's copies lie."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "tripletmill")


def stage(index: DatasetIndex, *, folder: str) -> DatasetIndex:
    """The same index with its shards on a local disk; itself where they lie on one already.

    They are put into FOLDER/<data set>-<16 digits of what decides its bytes>, each under its own
    name once its bytes have the data set's CRC-32C. One that lies there with the right size is
    trusted: nothing but a listing of the bucket is asked for then. Ended at any moment, the same
    call goes on, but for the shards in hand. Of several processes of a host, one fetches and the
    others wait.

    Raises:
      UsageError: no room, a folder that cannot be written, a shard that is not the data set's.
      OSError: a network or bucket in trouble, after retries.
    """
    info, split = index.info, index.split
    if not storage.is_bucket(info.directory):
        return index
    storage.require_local(folder, "Reading.folder")
    target = storage.join(storage.absolute(folder), f"{info.name}-{_identity(info)}")
    shards = _shards(info, split, target)
    with Progress() as progress, contextlib.ExitStack() as held:
        missing = _missing(shards)
        if missing:
            with _writing(target):
                storage.make_folder(target)
                lock = storage.exclusive(
                    storage.join(target, ".lock"),
                    f"Reading.folder {folder}",
                    waiting=lambda: progress.line(
                        f"staging {split}: another process is at work in {target}; waiting for it"
                    ),
                )
                held.enter_context(lock)
                _remove_leftovers(target)
            missing = _missing(shards)
        if missing:
            _fetch(shards, missing, split, progress)
        progress.line(
            f"staged {split}: {len(shards)} shards, {_amount(_size(shards))} in {target},"
            f" {len(shards) - len(missing)} already there"
        )
    return dataclasses.replace(index, shards=[shard.path for shard in shards])


@dataclasses.dataclass(eq=False)
class _Shard:
    """A shard; written to, it takes its place when all of it has arrived and is right.

    Attributes:
      source: gs:// path.
      path: local path.
      size: bytes.
      crc32c: of its bytes, if anybody knows it.
      received: bytes that have arrived.
      finished: whether it has been written and lies in its place.
    """

    source: str
    path: str
    size: int
    crc32c: int | None
    received: int = 0
    finished: bool = False
    _received_crc32c: int = 0
    _closed: bool = False
    _file: BinaryIO | None = None
    # Held while bytes are taken: none are once `close` has returned.
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    _place: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def tell(self) -> int:
        return self.received

    def write(self, data: bytes) -> int:
        """Takes the next bytes.

        Raises:
          UsageError: they cannot be written.
          OSError: they are not the shard's.
        """
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path}: nobody waits for it any more")
            return self._take(data)

    def _take(self, data: bytes) -> int:
        with _writing(self.path):
            if self._file is None:  # not before: there may be more shards than can be open
                self._file = self._place.enter_context(storage.atomic_file(self.path))
            self._file.write(data)
        self.received += len(data)
        self._received_crc32c = google_crc32c.extend(self._received_crc32c, data)
        if self.received == self.size and self.crc32c in (None, self._received_crc32c):
            with _writing(self.path):
                self._place.close()
            self.finished = True
        elif self.received >= self.size:
            self.require_finished()
        return len(data)

    def require_finished(self) -> None:
        """Raises OSError where the bytes that have arrived are not the shard's."""
        if not self.finished:
            raise OSError(
                errno.EIO,
                f"arrived damaged, {self.received:,} bytes of {self.size:,}, CRC-32C"
                f" {self._received_crc32c} (if again, see `{_verify(self.source)}`)",
                self.source,
            )

    def close(self) -> None:
        """Takes nothing any more, and leaves nothing unless it is finished."""
        with self._lock:
            self._closed = True
            with contextlib.suppress(Exception), self._place:
                raise InterruptedError


def _identity(info: DatasetInfo) -> str:
    """Hash of what decides the bytes of all splits, wherever they lie."""
    decides = [info.input_fingerprint, info.settings, info.num_bytes, info.shard_crc32c]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _shards(info: DatasetInfo, split: str, target: str) -> list[_Shard]:
    """All of a split; raises UsageError where one is missing or another in the bucket."""
    found = {file.path: file for file in storage.list_files(info.directory)}
    names = info.shard_files(split)
    known = info.shard_crc32c.get(split, ())
    shards = []
    for number, name in enumerate(names):
        source = info.path(name)
        if (file := found.get(source)) is None:
            raise UsageError(f"data_dir {info.directory}: shard {name} is missing")
        crc32c = known[number] if len(known) == len(names) else file.crc32c
        if file.crc32c not in (None, crc32c):
            raise UsageError(
                f"{source}: not the bytes that the data set was written with; see"
                f" `{_verify(source)}`, then upload or preprocess it again"
            )
        shards.append(_Shard(source, storage.join(target, name), file.size, crc32c))
    return shards


def _missing(shards: Sequence[_Shard]) -> list[_Shard]:
    """Those that do not lie on the disk with their size."""

    def is_there(shard: _Shard) -> bool:
        try:
            return storage.stat(shard.path).size == shard.size
        except OSError:
            return False

    return [shard for shard in shards if not is_there(shard)]


def _fetch(
    shards: Sequence[_Shard], missing: Sequence[_Shard], split: str, progress: Progress
) -> None:
    """Brings the missing ones of a split's shards; errors as `stage`."""
    start, total = time.monotonic(), _size(shards)
    before = total - _size(missing)

    def watch() -> None:
        received = sum(shard.received for shard in missing)
        finished = len(shards) - sum(not shard.finished for shard in missing)
        rate = received / (time.monotonic() - start)
        left = duration((total - before - received) / rate) if rate else ""
        progress.update(
            f"staging {split}: {_amount(before + received, of=total)}, {finished} of {len(shards)}"
            " shards" + (f", {_amount(rate)}/s, {left} left" if rate else "")
        )

    _require_room(missing)
    try:
        with contextlib.ExitStack() as ended:
            for shard in missing:
                ended.callback(shard.close)
                if not shard.size:
                    shard.write(b"")  # nobody else will
            bucket.download([(shard.source, shard) for shard in missing if shard.size], watch=watch)
            for shard in missing:
                shard.require_finished()
    except OSError as error:
        text = f"{error.strerror}; the same command goes on from there"
        raise OSError(error.errno, text, error.filename) from error
    except UsageError:
        _require_room(_missing(missing))  # says more, if that is what was wrong
        raise


def _verify(source: str) -> str:
    return f"python -m tripletmill verify {os.path.dirname(source)}"


@contextlib.contextmanager
def _writing(target: str) -> Iterator[None]:
    """Turns errors of the disk into UsageErrors."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror}); {_INSTEAD}") from error


def _require_room(missing: Sequence[_Shard]) -> None:
    """Raises UsageError where the missing shards have no room."""
    if missing:
        target = os.path.dirname(missing[0].path)
        needed, free = _size(missing), shutil.disk_usage(target).free
        if needed > free:
            text = f"{_amount(needed)} needed, {_amount(free)} free"
            raise UsageError(f"{target}: {text}; {_INSTEAD}")


def _remove_leftovers(target: str) -> None:
    """Removes what was in hand when a process was killed; only who holds the lock may."""
    for file in storage.list_files(target):
        if file.path.endswith(".partial"):
            storage.remove(file.path)


def _size(shards: Sequence[_Shard]) -> int:
    return sum(shard.size for shard in shards)


def _amount(size: float, *, of: float | None = None) -> str:
    """Bytes as "8.0 GB", or "1.2 of 8.0 GB"."""
    whole = size if of is None else of
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if whole >= scale), _UNITS[-1])
    part = "" if of is None else f"{size / scale:.1f} of "
    return f"{part}{whole / scale:.1f} {unit}"
