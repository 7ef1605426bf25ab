"""Objects in Cloud Storage, as `tripletmill.storage` describes it.

Uploads are atomic, and retried: a request that may have been carried out although its answer was
lost is either the same when done twice, or names the version that it replaces.
"""

import base64
import contextlib
import errno
import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, BinaryIO, Protocol, cast

from tripletmill.errors import UsageError
from tripletmill.storage.files import ANY, FileInfo, Replaced

SCHEME = "gs://"
TIMEOUT_SECONDS = (10.0, 60.0)  # to connect, and between two bytes of an answer
RETRY_SECONDS = 120.0
CONNECTIONS = 64
REMOVED_AT_ONCE = 16
DOWNLOADED_AT_ONCE = 16
WATCH_SECONDS = 0.2
READ_AHEAD = 2**20
UPLOAD_IN_ONE = 8 * 2**20  # a larger object is sent in chunks of this size
_FIELDS = "items(name,size,updated,md5Hash,crc32c),prefixes,nextPageToken"


def split(path: str) -> tuple[str, str]:
    """Bucket and object name of a path."""
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    return bucket, name


@functools.cache
def _client() -> Any:
    """One a process: it keeps connections, and is safe in threads."""
    # Imported here: half a second that local work does not need.
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
    return _client().bucket(bucket).blob(name, chunk_size=UPLOAD_IN_ONE)


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


def stat(path: str) -> FileInfo:
    blob = _blob(path)
    with _errors(path):
        blob.reload(timeout=TIMEOUT_SECONDS, retry=_retry())
    return _info(split(path)[0], blob)


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
    """Names of the folders in a folder, sorted, and its own files, by path."""
    bucket, _ = split(folder)
    with _errors(folder):
        found = _list(folder, delimiter="/")
        files = [_info(bucket, blob) for blob in found if not blob.name.endswith("/")]
    names = sorted(prefix.removesuffix("/").rpartition("/")[2] for prefix in found.prefixes)
    return names, sorted(files, key=lambda info: info.path)


def list_tree(folder: str) -> Iterator[FileInfo]:
    """Every object below a folder, by path; without the empty ones that stand for folders."""
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
        with _errors(self._path):  # it asks for the object
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
                checksum=None,  # there is none of a part
                timeout=TIMEOUT_SECONDS,
                retry=_retry(),
            )
        except RequestRangeNotSatisfiable:
            return b""


class Sink(Protocol):
    """Where the bytes of an object go."""

    def write(self, data: bytes, /) -> int:
        """Takes the next bytes; what it raises ends the download of all."""

    def tell(self) -> int:
        """How many it has taken."""


def download(objects: Sequence[tuple[str, Sink]], *, watch: Callable[[], None]) -> None:
    """Brings the bytes of objects, several at once, unchecked; ends soon after the first error.

    What has arrived is not asked for again, and retries go on as long as anything arrives at all.
    Then a thread may still sit in a request, and write when that is answered: let `write` refuse.

    Args:
      objects: path of each, and what takes its bytes, in order.
      watch: called a few times a second, in this thread; what it raises, or Ctrl+C, ends it.

    Raises:
      OSError: a bucket or network in trouble, after retries.
    """
    from google.api_core.exceptions import RetryError
    from google.cloud.storage import transfer_manager

    stop = threading.Event()

    def fetch(request: Callable[[], Any], answer: Future) -> None:
        try:
            while True:
                before = sum(sink.tell() for _, sink in objects)
                try:
                    answer.set_result(_retry()(request)())
                    return
                except RetryError:  # its time counts from the start of the download
                    if before == sum(sink.tell() for _, sink in objects):
                        raise
        except BaseException as error:
            answer.set_exception(error)

    def until_stopped(request: Callable[[], Any]) -> Callable[[], Any]:
        """In place of a Retry, as which download_many calls it.

        Of the manager's own, every thread is waited for, with all that it has still to do, be it
        after an error or Ctrl+C. Here they wait for one that need not end.
        """

        def call() -> Any:
            answer: Future = Future()
            if not stop.is_set():
                threading.Thread(target=fetch, args=(request, answer), daemon=True).start()
            while not answer.done():
                if stop.is_set():
                    raise _Stopped
                wait([answer], WATCH_SECONDS)
            if answer.exception():
                stop.set()
            return answer.result()

        return call

    with ThreadPoolExecutor(1) as pool:
        try:
            results = pool.submit(
                transfer_manager.download_many,
                [(_client().bucket(split(path)[0]).blob(split(path)[1]), s) for path, s in objects],
                download_kwargs={
                    "checksum": None,  # it would not look at a download that was taken up again
                    "timeout": TIMEOUT_SECONDS,
                    "retry": until_stopped,
                },
                worker_type=transfer_manager.THREAD,
                max_workers=DOWNLOADED_AT_ONCE,
            )
            while not wait([results], WATCH_SECONDS).done:
                watch()
        finally:
            stop.set()
    for (path, _), result in zip(objects, results.result(), strict=True):
        if isinstance(result, BaseException) and not isinstance(result, _Stopped):
            with _errors(path):
                raise result


class _Stopped(Exception):  # noqa: N818
    """Another download has failed, or somebody wants no more."""


def version(path: str) -> str:
    blob = _blob(path)
    try:
        with _errors(path):
            blob.reload(timeout=TIMEOUT_SECONDS, retry=_retry())
    except FileNotFoundError:
        return ""
    return str(blob.generation)


@contextlib.contextmanager
def atomic_file(path: str, *, temporary: str | None, replaces: str | None) -> Iterator[BinaryIO]:
    match = None if replaces == ANY else int(replaces or 0)
    with tempfile.TemporaryFile() as file:
        yield cast(BinaryIO, file)
        size = file.seek(0, os.SEEK_END)
        with _errors(path):
            _blob(path).upload_from_file(
                file,
                size=size,  # up to 8 MiB go in one request
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
        for _ in pool.map(remove, [info.path for info in list_tree(folder)]):
            pass
