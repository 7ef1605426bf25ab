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
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.errors import UsageError
from preprocessing.images import BadImage, CanonicalImage, ImageSettings, canonical_jpeg
from preprocessing.index import INDEX_SCHEMA
from preprocessing.records import RecordWriter, encode_example
from preprocessing.sources import ImageRef, Rejected
from preprocessing.storage import atomic_file

METADATA_KEY = b"tripletmill"
IMAGES_AHEAD_PER_THREAD = 4


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard to be written.

    Attributes:
      file_name: of the shard.
      shard: its number.
      images: label and reference, in the order of the records.
    """

    file_name: str
    shard: int
    images: Sequence[tuple[int, ImageRef]]

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Of the settings and of every image with its version."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for label, ref in self.images:
            row = [label, ref.class_name, ref.source_id, ref.size, ref.modified]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What is known of a finished shard: index rows, and what was left out."""

    rows: pa.Table
    rejected: Sequence[Rejected]
    fingerprint: str
    num_bytes: int

    def is_whole(self, shard: str) -> bool:
        """Whether the shard's file has the size that was written."""
        return os.path.isfile(shard) and os.path.getsize(shard) == self.num_bytes


def sidecar_path(work: str, file_name: str) -> str:
    """Where the sidecar of a shard lies."""
    return os.path.join(work, f"{file_name}.sidecar.parquet")


def progress_path(work: str, file_name: str) -> str:
    """A file that grows by one byte an image, so that anyone can see how far a shard is."""
    return os.path.join(work, f"{file_name}.progress")


def read_sidecar(work: str, file_name: str) -> Sidecar | None:
    """The sidecar of a shard, None where there is none."""
    try:
        table = pq.read_table(sidecar_path(work, file_name))
    except FileNotFoundError:
        return None
    content = json.loads(table.schema.metadata[METADATA_KEY])
    return Sidecar(
        rows=table.replace_schema_metadata(None),
        rejected=[Rejected(**row) for row in content["rejected"]],
        fingerprint=content["fingerprint"],
        num_bytes=content["num_bytes"],
    )


def write_shard(
    task: ShardTask,
    *,
    output: str,
    work: str,
    settings: Mapping[str, Any],
    image: ImageSettings,
    threads: int,
) -> None:
    """Writes a shard and its sidecar, unless both are there.

    Args:
      task: what to write.
      output: folder of the data set.
      work: folder of sidecars.
      settings: what decides the bytes, for the fingerprint.
      image: how images are made canonical.
      threads: how many images are read and decoded at once.
    """
    fingerprint = task.fingerprint(settings)
    target = os.path.join(output, task.file_name)
    done = read_sidecar(work, task.file_name)
    if done and done.fingerprint == fingerprint and done.is_whole(target):
        with open(progress_path(work, task.file_name), "wb") as progress:
            progress.write(b"." * len(task.images))
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(sidecar_path(work, task.file_name))

    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    with (
        open(progress_path(work, task.file_name), "wb", buffering=0) as progress,
        atomic_file(target, temporary=os.path.join(work, task.file_name)) as file,
    ):
        writer = RecordWriter(file)
        for (label, ref), result in _read_all(task.images, image, threads):
            if isinstance(result, str):
                rejected.append(Rejected(ref.source_id, ref.class_name, result))
            else:
                rows.append(_write(writer, task.shard, label, ref, *result))
            progress.write(b".")
        num_bytes = file.tell()

    content = {
        "fingerprint": fingerprint,
        "num_bytes": num_bytes,
        "rejected": [dataclasses.asdict(row) for row in rejected],
    }
    schema = INDEX_SCHEMA.with_metadata({METADATA_KEY: json.dumps(content).encode()})
    with atomic_file(sidecar_path(work, task.file_name)) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)


def _write(
    writer: RecordWriter,
    shard: int,
    label: int,
    ref: ImageRef,
    source_sha256: bytes,
    image: CanonicalImage,
) -> dict[str, Any]:
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
    return {
        "shard": shard,
        "offset": writer.write(payload),
        "length": len(payload),
        "label": label,
        "height": image.height,
        "width": image.width,
        "source_id": ref.source_id,
        "sha256": sha256,
        "source_sha256": source_sha256,
    }


def _read_all(
    images: Iterable[tuple[int, ImageRef]], settings: ImageSettings, threads: int
) -> Iterator[tuple[tuple[int, ImageRef], tuple[bytes, CanonicalImage] | str]]:
    """Every image with its content, or the reason why there is none; a bounded number ahead."""
    waiting: collections.deque[tuple[tuple[int, ImageRef], Future]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in images:
                waiting.append((item, pool.submit(_read, item[1].path, settings)))
                if len(waiting) >= threads * IMAGES_AHEAD_PER_THREAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(path: str, settings: ImageSettings) -> tuple[bytes, CanonicalImage] | str:
    try:
        with open(path, "rb") as file:
            data = file.read()
        return hashlib.sha256(data).digest(), canonical_jpeg(data, settings)
    except BadImage as error:
        return error.reason
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        return f"cannot be read: {error.strerror}"
    except OSError as error:
        # A disk or a network in trouble, not a bad image: nothing may be left out for that.
        raise UsageError(f"{path}: {error.strerror}; the same command goes on from here") from error
