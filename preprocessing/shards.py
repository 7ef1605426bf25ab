"""One shard of a data set: images read, made canonical, written whole or not at all.

Beside a finished shard lies a sidecar, its rows of the index with what was rejected and a
fingerprint of all that went in. A shard with the right sidecar is finished and is not made again.
Sidecars lie in a work folder and go when the data set is committed.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing import storage
from preprocessing.claim import Claim
from preprocessing.errors import UsageError
from preprocessing.images import BadImage, ImageSettings, canonical_jpeg
from preprocessing.index import INDEX_SCHEMA
from preprocessing.records import RecordWriter, encode_example
from preprocessing.sources import ImageRef, Rejected, read_image

METADATA_KEY = b"tripletmill"
IMAGES_AT_ONCE = 16
AHEAD_PER_THREAD = 2  # times IMAGES_AT_ONCE
PROGRESS_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard to be written.

    Attributes:
      file_name: of the shard.
      shard: its number.
      images: label and reference, in the order of the records.
      columns: names of the images' further values.
    """

    file_name: str
    shard: int
    images: Sequence[tuple[int, ImageRef]]
    columns: Sequence[str] = ()

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Of the settings and of every image with its version."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for label, ref in self.images:
            row = [label, ref.class_name, ref.source_id, ref.size, ref.modified, ref.md5, ref.extra]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What is known of a finished shard: index rows, and what was left out."""

    rows: pa.Table
    rejected: Sequence[Rejected]
    fingerprint: str
    num_bytes: int
    crc32c: int

    def is_of(self, shard: storage.FileInfo) -> bool:
        """Whether a file is the shard that was written, by size and, in a bucket, checksum."""
        return shard.size == self.num_bytes and shard.crc32c in (None, self.crc32c)


@dataclasses.dataclass(frozen=True)
class Written:
    """A finished shard: images that were read for it now, and those there from before."""

    file_name: str
    read: int
    reused: int


def index_schema(columns: Iterable[str]) -> pa.Schema:
    """Schema of an index with further columns."""
    return pa.schema([*INDEX_SCHEMA, *((f"x_{name}", pa.string()) for name in columns)])


def sidecar_path(work: str, file_name: str) -> str:
    """Where the sidecar of a shard lies."""
    return storage.join(work, f"{file_name}.sidecar.parquet")


def progress_path(work: str, file_name: str) -> str:
    """A local file that grows by one byte an image, so that anyone can see how far a shard is."""
    return storage.join(work, f"{file_name}.progress")


def read_sidecar(work: str, file_name: str) -> Sidecar | None:
    """The sidecar of a shard, None where there is none."""
    try:
        data = storage.read(sidecar_path(work, file_name))
    except FileNotFoundError:
        return None
    # No threads of Arrow's: they can outlive Python, and end it with an abort.
    table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    content = json.loads(table.schema.metadata[METADATA_KEY])
    return Sidecar(
        rows=table.replace_schema_metadata(None),
        rejected=[Rejected(**row) for row in content["rejected"]],
        fingerprint=content["fingerprint"],
        num_bytes=content["num_bytes"],
        crc32c=content["crc32c"],
    )


def write_shard(
    task: ShardTask,
    *,
    claim: Claim,
    settings: Mapping[str, Any],
    image: ImageSettings,
    threads: int,
) -> Written:
    """Writes a shard and its sidecar, unless both are there.

    Args:
      task: what to write.
      claim: the job's, with the folder of the data set and that of sidecars.
      settings: what decides the bytes, for the fingerprint.
      image: how images are made canonical.
      threads: how many images are read and decoded at once.

    Raises:
      UsageError: another job has begun in this output; a disk or a network in trouble.
    """
    fingerprint = task.fingerprint(settings)
    work = claim.folder
    target = storage.join(claim.output, task.file_name)
    version = storage.version(target)
    if _is_finished(target, read_sidecar(work, task.file_name), fingerprint):
        with _progress(work, task.file_name) as progress:
            progress(len(task.images))
        return Written(task.file_name, read=0, reused=len(task.images))
    storage.remove(sidecar_path(work, task.file_name))

    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    checked: _Checksummed | None = None
    try:
        with (
            _progress(work, task.file_name) as progress,
            storage.atomic_file(
                target, temporary=storage.join(work, task.file_name), replaces=version
            ) as file,
        ):
            checked = _Checksummed(file)
            writer = RecordWriter(checked)  # type: ignore[arg-type]
            for (label, ref), result in _read_all(task.images, image, threads):
                if isinstance(result, str):
                    rejected.append(Rejected(ref.source_id, ref.class_name, result))
                else:
                    offset = writer.write(result.payload)
                    rows.append(_row(task, label, ref, offset, result))
                progress(1)
            claim.check()
    except storage.Replaced:
        # Two workers on one shard, or an upload that was carried out although its answer was lost.
        claim.check()
        if checked is None or storage.stat(target).crc32c != checked.crc32c:
            raise UsageError(f"{target}: another job has written it at the same time") from None
    assert checked is not None
    content = {
        "fingerprint": fingerprint,
        "num_bytes": checked.num_bytes,
        "crc32c": checked.crc32c,
        "rejected": [dataclasses.asdict(row) for row in rejected],
    }
    metadata = {METADATA_KEY: json.dumps(content).encode()}
    schema = index_schema(task.columns).with_metadata(metadata)
    claim.check()
    with storage.atomic_file(sidecar_path(work, task.file_name)) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    return Written(task.file_name, read=len(task.images), reused=0)


def _is_finished(target: str, sidecar: Sidecar | None, fingerprint: str) -> bool:
    if sidecar is None or sidecar.fingerprint != fingerprint:
        return False
    try:
        return sidecar.is_of(storage.stat(target))
    except FileNotFoundError:
        return False


class _Checksummed:
    """Passes writes on, and counts and sums what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0
        self.crc32c = 0

    def seekable(self) -> bool:
        return False

    def write(self, data: bytes) -> int:
        self.num_bytes += len(data)
        self.crc32c = google_crc32c.extend(self.crc32c, data)
        return self._file.write(data)


@contextlib.contextmanager
def _progress(work: str, file_name: str) -> Iterator[Any]:
    """A function to be called with numbers of images; it writes seldom, and in no bucket."""
    if storage.is_bucket(work):
        yield lambda count: None
        return
    waiting, written_at = 0, time.monotonic()
    with open(progress_path(work, file_name), "wb", buffering=0) as file:

        def done(count: int) -> None:
            nonlocal waiting, written_at
            waiting += count
            if time.monotonic() - written_at > PROGRESS_SECONDS:
                file.write(b"." * waiting)
                waiting, written_at = 0, time.monotonic()

        yield done
        file.write(b"." * waiting)


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    """A record to be written, and what the index says of it."""

    payload: bytes
    height: int
    width: int
    sha256: bytes
    source_sha256: bytes


def _row(
    task: ShardTask, label: int, ref: ImageRef, offset: int, record: _Record
) -> dict[str, Any]:
    return {
        "shard": task.shard,
        "offset": offset,
        "length": len(record.payload),
        "label": label,
        "height": record.height,
        "width": record.width,
        "source_id": ref.source_id,
        "sha256": record.sha256,
        "source_sha256": record.source_sha256,
        **{f"x_{name}": value for name, value in zip(task.columns, ref.extra, strict=True)},
    }


def _read_all(
    images: Sequence[tuple[int, ImageRef]], settings: ImageSettings, threads: int
) -> Iterator[tuple[tuple[int, ImageRef], _Record | str]]:
    """Every image as a record, or the reason why there is none; a bounded number ahead.

    A thread takes some images at a time: handing over one takes as long as a small one's JPEG.
    """
    waiting: collections.deque[tuple[Sequence[tuple[int, ImageRef]], Future]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for start in range(0, len(images), IMAGES_AT_ONCE):
                some = images[start : start + IMAGES_AT_ONCE]
                waiting.append((some, pool.submit(_read_some, some, settings)))
                if len(waiting) >= threads * AHEAD_PER_THREAD:
                    first, future = waiting.popleft()
                    yield from zip(first, future.result(), strict=True)
            while waiting:
                first, future = waiting.popleft()
                yield from zip(first, future.result(), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_some(
    images: Iterable[tuple[int, ImageRef]], settings: ImageSettings
) -> list[_Record | str]:
    return [_read(label, ref, settings) for label, ref in images]


def _read(label: int, ref: ImageRef, settings: ImageSettings) -> _Record | str:
    try:
        data = read_image(ref)
        image = canonical_jpeg(data, settings)
    except BadImage as error:
        return error.reason
    except MemoryError:
        return "not enough memory to read it"
    except OSError as error:
        problem = storage.problem_of_file(error)
        if problem is not None:
            return problem
        # A disk or a network in trouble, not a bad image: nothing may be left out for that.
        text = error.strerror or str(error)
        raise UsageError(f"{ref.path}: {text}; the same command goes on from here") from error
    sha256 = hashlib.sha256(image.jpeg).digest()
    payload = encode_example(
        {
            "image/encoded": image.jpeg,
            "image/format": "jpeg",
            "image/height": image.height,
            "image/width": image.width,
            "image/class/label": label,
            "image/class/text": ref.class_name,
            "image/source_id": ref.source_id,
            "image/key/sha256": sha256,
        }
    )
    return _Record(payload, image.height, image.width, sha256, hashlib.sha256(data).digest())
