"""One shard of a data set: images read, made canonical, written whole or not at all.

Its sidecar (`preprocessing.writing.sidecars`) holds its rows of the index with what was rejected.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from preprocessing.sources.inputs import read_image
from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.writing import sidecars
from preprocessing.writing.claim import Claim
from tripletmill.errors import UsageError
from tripletmill.formats.index import INDEX_SCHEMA
from tripletmill.formats.records import RecordWriter, encode_example
from tripletmill.images import BadImage, CanonicalImage, ImageSettings, canonical_jpeg
from tripletmill.storage import storage
from tripletmill.storage.parallel import map_ahead


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
class Written:
    """A finished shard: images that were read for it now, and those there from before."""

    file_name: str
    read: int
    reused: int


def index_schema(columns: Iterable[str]) -> pa.Schema:
    """Schema of an index with further columns."""
    return pa.schema([*INDEX_SCHEMA, *((f"x_{name}", pa.string()) for name in columns)])


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
    count = len(task.images)
    if sidecars.is_finished(claim, task.file_name, fingerprint):
        with sidecars.progress(claim.folder, task.file_name) as progress:
            progress(count)
        return Written(task.file_name, read=0, reused=count)

    def content(file: BinaryIO) -> tuple[pa.Table, Sequence[Rejected]]:
        rows: list[dict[str, Any]] = []
        rejected: list[Rejected] = []
        writer = RecordWriter(file)
        results = map_ahead(lambda item: _read(*item, image), task.images, threads=threads)
        with sidecars.progress(claim.folder, task.file_name) as progress:
            for (label, ref), result in zip(task.images, results, strict=True):
                if isinstance(result, str):
                    rejected.append(Rejected(ref.source_id, ref.class_name, result))
                else:
                    offset = writer.write(result.payload)
                    rows.append(_row(task, label, ref, offset, result))
                progress(1)
        return pa.Table.from_pylist(rows, schema=index_schema(task.columns)), rejected

    sidecars.write(claim, task.file_name, fingerprint, content)
    return Written(task.file_name, read=count, reused=0)


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


def _read(label: int, ref: ImageRef, settings: ImageSettings) -> _Record | str:
    read = read_canonical(ref, settings)
    if isinstance(read, str):
        return read
    data, image = read
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


def read_canonical(ref: ImageRef, settings: ImageSettings) -> tuple[bytes, CanonicalImage] | str:
    """An image file and what it is in canonical form, or the reason why it cannot be used.

    Raises:
      UsageError: a disk or a network in trouble.
    """
    try:
        data = read_image(ref)
        return data, canonical_jpeg(data, settings)
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
