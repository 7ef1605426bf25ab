"""Writes one shard of a data set: reads its images, makes them canonical and writes the records.

A shard is written as a whole or not at all. Its sidecar (`preprocessing.writing.sidecars`) holds
its rows of the index and the images that were rejected.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from preprocessing.sources.inputs import read_image
from preprocessing.sources.references import ImageRef, Rejected, reason_unreadable
from preprocessing.writing import sidecars
from preprocessing.writing.claim import Claim
from tripletmill.formats.index import INDEX_SCHEMA
from tripletmill.formats.records import RecordWriter, encode_example
from tripletmill.images import BadImage, CanonicalImage, ImageSettings, canonical_jpeg
from tripletmill.storage.parallel import map_ahead


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard that is to be written.

    Attributes:
      file_name: the file name of the shard.
      shard: the number of the shard in its split.
      images: the label and the reference of each image, in the order of the records.
      columns: the names of the additional values that the images carry.
    """

    file_name: str
    shard: int
    images: Sequence[tuple[int, ImageRef]]
    columns: Sequence[str] = ()

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """A hexadecimal hash of the settings and of every image with its version."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for label, ref in self.images:
            row = [label, ref.class_name, ref.source_id, ref.size, ref.modified, ref.md5, ref.extra]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def index_schema(columns: Iterable[str]) -> pa.Schema:
    """The schema of an index whose images carry additional values in these columns."""
    return pa.schema([*INDEX_SCHEMA, *((f"x_{name}", pa.string()) for name in columns)])


def write_shard(
    task: ShardTask,
    *,
    claim: Claim,
    settings: Mapping[str, Any],
    image: ImageSettings,
    threads: int,
) -> int:
    """Writes a shard and its sidecar, unless a finished shard with this content is there.

    Args:
      task: says what to write.
      claim: the job's claim, which names the folders of the data set and of the sidecars.
      settings: all settings that decide the bytes. They are part of the shard's fingerprint.
      image: how images are made canonical.
      threads: how many images are read and decoded at the same time.

    Returns:
      How many images were read: all images of the shard, or 0 if the shard was finished before.

    Raises:
      UsageError: another job has begun to write into this output, or a disk or network fails.
    """
    fingerprint = task.fingerprint(settings)
    count = len(task.images)
    if sidecars.is_finished(claim, task.file_name, fingerprint):
        with sidecars.progress(claim.folder, task.file_name) as progress:
            progress(count)
        return 0

    def content(file: BinaryIO) -> tuple[pa.Table, Sequence[Rejected]]:
        rows: list[dict[str, Any]] = []
        rejected: list[Rejected] = []
        writer = RecordWriter(file)
        results = map_ahead(
            lambda item: _read(*item, task.columns, image), task.images, threads=threads
        )
        with sidecars.progress(claim.folder, task.file_name) as progress:
            for (label, ref), result in zip(task.images, results, strict=True):
                if isinstance(result, str):
                    rejected.append(Rejected(ref.source_id, ref.class_name, result))
                else:
                    payload, values = result
                    offset = writer.write(payload)
                    rows.append({"shard": task.shard, "offset": offset, "label": label, **values})
                progress(1)
        return pa.Table.from_pylist(rows, schema=index_schema(task.columns)), rejected

    sidecars.write(claim, task.file_name, fingerprint, content)
    return count


def _read(
    label: int, ref: ImageRef, columns: Sequence[str], settings: ImageSettings
) -> tuple[bytes, dict[str, Any]] | str:
    """The record of an image and its values in the index, or why the image cannot be used.

    The values lack the place of the record: its label, shard and offset.
    """
    result = read_canonical(ref, settings)
    if isinstance(result, str):
        return result
    data, image = result
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
    return payload, {
        "length": len(payload),
        "height": image.height,
        "width": image.width,
        "source_id": ref.source_id,
        "sha256": sha256,
        "source_sha256": hashlib.sha256(data).digest(),
        **{f"x_{name}": value for name, value in zip(columns, ref.extra, strict=True)},
    }


def read_canonical(ref: ImageRef, settings: ImageSettings) -> tuple[bytes, CanonicalImage] | str:
    """The bytes of an image file and its canonical form, or the reason why it cannot be used.

    Raises:
      UsageError: a disk or network fails.
    """
    try:
        data = read_image(ref)
        return data, canonical_jpeg(data, settings)
    except BadImage as error:
        return error.reason
    except MemoryError:
        return "not enough memory to read it"
    except OSError as error:
        return reason_unreadable(ref.path, error)
