"""Objects in Cloud Storage; `tripletmill.storage.storage` documents the functions.

Uploads are atomic, and they are retried. The answer to a request can get lost although the request
was carried out. Repeating it does no harm: either it has the same effect twice, or it names the
version of the object that it replaces.
"""

import base64
import collections
import contextlib
import errno
import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol, cast

from tripletmill.errors import UsageError
from tripletmill.storage.files import ANY, FileInfo, Replaced

SCHEME = "gs://"
TIMEOUT_SECONDS = (10.0, 60.0)  # for connecting, and for the wait between two bytes
RETRY_SECONDS = 120.0
CONNECTIONS = 64
REMOVED_AT_ONCE = 16
DOWNLOADED_AT_ONCE = 16
WATCH_SECONDS = 0.2
READ_AHEAD = 2**20
UPLOAD_CHUNK = 8 * 2**20  # a larger object is uploaded in chunks of this size
_FIELDS = "items(name,size,updated,md5Hash,crc32c),prefixes,nextPageToken"


def split(path: str) -> tuple[str, str]:
    """Returns the bucket and the object name of a gs:// path; either may be empty."""
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    return bucket, name


@functools.cache
def _client() -> Any:
    """The client of this process, which keeps connections and can be used in many threads."""
    # The import takes half a second, which programs that use local files alone do not need.
    import requests
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    try:
        client = storage.Client(project=None)
    except DefaultCredentialsError as error:
        raise UsageError(
            "gs://: no credentials found; run `gcloud auth application-default login`, or set"
            " GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=CONNECTIONS)
    client._http.mount("https://", adapter)
    client._http.mount("http://", adapter)
    return client


@functools.cache
def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(initial=0.2, maximum=10)


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Turns the library's errors into OSErrors and Replaced."""
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    try:
        yield
    except exceptions.NotFound as error:
        raise FileNotFoundError(errno.ENOENT, "No such object or bucket", path) from error
    except exceptions.PreconditionFailed as error:
        raise Replaced(path) from error
    except (
        exceptions.GoogleAPIError,
        requests.RequestException,
        GoogleAuthError,
        DataCorruption,
        InvalidResponse,
    ) as error:
        text = " ".join(str(error).split())[:300]
        raise OSError(errno.EIO, f"Cloud Storage: {text}", path) from error


def _blob(path: str) -> Any:
    bucket, name = split(path)
    return _client().bucket(bucket).blob(name, chunk_size=UPLOAD_CHUNK)


def _info(bucket: str, blob: Any) -> FileInfo:
    return FileInfo(
        path=f"{SCHEME}{bucket}/{blob.name}",
        size=blob.size,
        modified=int(blob.updated.timestamp() * 1e9) if blob.updated else 0,
        md5=base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else "",
        crc32c=int.from_bytes(base64.b64decode(blob.crc32c), "big") if blob.crc32c else None,
    )


def absolute(path: str) -> str:
    return path.rstrip("/")


def _reloaded(path: str) -> Any:
    blob = _blob(path)
    with _errors(path):
        blob.reload(timeout=TIMEOUT_SECONDS, retry=_retry())
    return blob


def stat(path: str) -> FileInfo:
    return _info(split(path)[0], _reloaded(path))


def _list(folder: str, *, delimiter: str | None = None, limit: int | None = None) -> Any:
    bucket, prefix = split(folder)
    return _client().list_blobs(
        bucket,
        prefix=f"{prefix.rstrip('/')}/" if prefix else None,
        delimiter=delimiter,
        fields=_FIELDS,
        max_results=limit,
        timeout=TIMEOUT_SECONDS,
        retry=_retry(),
    )


def is_folder(path: str) -> bool:
    try:
        with _errors(path):
            return any(True for _ in _list(path, limit=1))
    except FileNotFoundError:
        return False


def list_folder(folder: str) -> tuple[list[str], list[FileInfo]]:
    """Lists a folder: the sorted names of the folders in it, and its own files sorted by path."""
    bucket, _ = split(folder)
    with _errors(folder):
        blobs = _list(folder, delimiter="/")
        files = [_info(bucket, blob) for blob in blobs if not blob.name.endswith("/")]
    names = sorted(prefix.removesuffix("/").rpartition("/")[2] for prefix in blobs.prefixes)
    return names, sorted(files, key=lambda info: info.path)


def list_tree(folder: str) -> Iterator[FileInfo]:
    """Yields every object below a folder by path, except empty objects that stand for folders."""
    bucket, _ = split(folder)
    with _errors(folder):
        for blob in _list(folder):
            if not blob.name.endswith("/"):
                yield _info(bucket, blob)


def list_files(folder: str) -> list[FileInfo]:
    try:
        return list_folder(folder)[1]
    except FileNotFoundError:
        return []


def is_empty(folder: str, *, but_for: str) -> bool:
    folders, files = list_folder(folder)
    return not {*folders, *(info.path.rpartition("/")[2] for info in files)} - {but_for}


def make_folder(path: str) -> None:
    pass


class _Reader:
    """A file that turns the library's errors into OSErrors."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path, self._file = path, file

    def read(self, size: int = -1) -> bytes:
        with _errors(self._path):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with _errors(self._path):  # seeking requests the object's size
            return self._file.seek(offset, whence)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def open_read(path: str) -> BinaryIO:
    with _errors(path):
        file = _blob(path).open(
            "rb", chunk_size=READ_AHEAD, timeout=TIMEOUT_SECONDS, retry=_retry()
        )
    return cast(BinaryIO, _Reader(path, file))


def read(path: str) -> bytes:
    with _errors(path):
        return _blob(path).download_as_bytes(timeout=TIMEOUT_SECONDS, retry=_retry())


def read_range(path: str, start: int, length: int) -> bytes:
    from google.api_core.exceptions import RequestRangeNotSatisfiable

    with _errors(path):
        try:
            return _blob(path).download_as_bytes(
                start=start,
                end=start + length - 1,
                checksum=None,  # a part of an object has no checksum
                timeout=TIMEOUT_SECONDS,
                retry=_retry(),
            )
        except RequestRangeNotSatisfiable:
            return b""


class Sink(Protocol):
    """Takes the bytes of an object."""

    def write(self, data: bytes, /) -> int:
        """Takes the next bytes; an exception ends the download of all objects."""

    def tell(self) -> int:
        """Returns the number of bytes that were taken."""


def download(objects: Sequence[tuple[str, Sink]], *, watch: Callable[[], None]) -> None:
    """Downloads objects, several at once, without comparing checksums.

    Bytes that have arrived are not requested again. Requests are retried as long as bytes of any
    object arrive. The first error ends the download of all objects. A thread may then still wait
    for an answer and write when the answer comes, so `Sink.write` must refuse bytes that come late.

    Args:
      objects: path of each object, and the sink that takes its bytes in order; nothing happens
        without objects.
      watch: called a few times a second in this thread; an exception that it raises, or Ctrl+C,
        ends the download.

    Raises:
      OSError: the bucket or the network fails in spite of retries.
    """
    waiting, errors = collections.deque(objects), list[BaseException]()

    def fetch_waiting() -> None:
        with contextlib.suppress(IndexError):  # nothing is waiting any more
            while True:
                path, sink = waiting.popleft()
                try:
                    _fetch(path, sink, lambda: sum(each.tell() for _, each in objects))
                except BaseException as error:
                    errors.append(error)
                    waiting.clear()

    # After Ctrl+C, the program does not wait for these threads, which may wait for an answer.
    num_threads = min(DOWNLOADED_AT_ONCE, len(objects))
    threads = [threading.Thread(target=fetch_waiting, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive() and not errors:
                thread.join(WATCH_SECONDS)
                watch()
    finally:
        waiting.clear()
    if errors:
        raise errors[0]


def _fetch(path: str, sink: Sink, num_received: Callable[[], int]) -> None:
    """Downloads an object; begins anew where it stopped as long as bytes of any object arrive."""
    from google.api_core.exceptions import RetryError

    bucket, name = split(path)
    while True:
        before = num_received()
        try:
            with _errors(path):
                _client().bucket(bucket).blob(name).download_to_file(
                    sink,
                    start=sink.tell() or None,
                    checksum=None,  # the library does not check a download that was resumed
                    timeout=TIMEOUT_SECONDS,
                    retry=_retry(),
                )
            return
        except OSError as error:
            # The time limit of a Retry counts from its start, even if bytes have arrived.
            if not isinstance(error.__cause__, RetryError) or num_received() == before:
                raise


def version(path: str) -> str:
    try:
        return str(_reloaded(path).generation)
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def atomic_file(path: str, *, temporary: str | None, replaces: str | None) -> Iterator[BinaryIO]:
    match = None if replaces == ANY else int(replaces or 0)
    with tempfile.TemporaryFile() as file:
        yield cast(BinaryIO, file)
        size = file.seek(0, os.SEEK_END)
        with _errors(path):
            _blob(path).upload_from_file(
                file,
                size=size,  # up to UPLOAD_CHUNK bytes are sent in one request
                rewind=True,
                if_generation_match=match,
                timeout=TIMEOUT_SECONDS,
                retry=_retry(),
            )


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError), _errors(path):
        _blob(path).delete(timeout=TIMEOUT_SECONDS, retry=_retry())


def remove_tree(folder: str) -> None:
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        list(pool.map(remove, [info.path for info in list_tree(folder)]))
