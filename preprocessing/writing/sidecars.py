"""Writes a shard as a whole or not at all, with a sidecar that says what the shard was made from.

A shard with the right sidecar is finished and is not made again. Sidecars lie in a work folder,
which is removed when the data set is committed.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.sources.references import Rejected
from preprocessing.writing.claim import Claim
from tripletmill.errors import UsageError
from tripletmill.storage import storage

METADATA_KEY = b"tripletmill"
PROGRESS_SECONDS = 0.2
SIDECARS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What is known about a finished shard.

    Attributes:
      rows: one row for each row of the shard, with the values that the commit needs.
      rejected: the images that were left out.
      fingerprint: a hash of everything that the shard was made from.
      num_bytes: the size of the shard in bytes.
      crc32c: the CRC-32C of the shard.
    """

    rows: pa.Table
    rejected: Sequence[Rejected]
    fingerprint: str
    num_bytes: int
    crc32c: int

    def is_of(self, shard: storage.FileInfo) -> bool:
        """Whether a file has the size and, if known, the checksum of the shard that was written."""
        return shard.size == self.num_bytes and shard.crc32c in (None, self.crc32c)


def sidecar_path(work: str, file_name: str) -> str:
    """The path of a shard's sidecar in a work folder."""
    return storage.join(work, f"{file_name}.sidecar.parquet")


def read_sidecar(work: str, file_name: str) -> Sidecar | None:
    """The sidecar of a shard, or None if there is no sidecar."""
    try:
        data = storage.read(sidecar_path(work, file_name))
    except FileNotFoundError:
        return None
    # Arrow's threads can outlive Python and then abort the process, so none are started.
    table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    content = json.loads(table.schema.metadata[METADATA_KEY])
    content["rejected"] = [Rejected(**row) for row in content["rejected"]]
    return Sidecar(rows=table.replace_schema_metadata(None), **content)


def read_sidecars(claim: Claim, files: Sequence[str]) -> Iterator[Sidecar]:
    """Yields the sidecars of shards in order.

    Several sidecars are read at the same time, because a bucket answers slowly.

    Args:
      claim: the job's claim, which names the folders of the shards and of the sidecars.
      files: the file names of the shards.

    Raises:
      UsageError: a shard or its sidecar is missing or incomplete.
    """
    present = {info.path: info for info in storage.list_files(claim.output)}
    with ThreadPoolExecutor(SIDECARS_AT_ONCE) as pool:
        for start in range(0, len(files), SIDECARS_AT_ONCE):
            batch = files[start : start + SIDECARS_AT_ONCE]
            yield from pool.map(lambda file: _checked_sidecar(claim, file, present), batch)


def _checked_sidecar(claim: Claim, file: str, present: Mapping[str, storage.FileInfo]) -> Sidecar:
    sidecar = read_sidecar(claim.folder, file)
    info = present.get(storage.join(claim.output, file))
    if sidecar is None or info is None or not sidecar.is_of(info):
        raise UsageError(f"{claim.output}: shard {file} is incomplete; run the same command again")
    return sidecar


def is_finished(claim: Claim, file_name: str, fingerprint: str) -> bool:
    """Whether a shard with this fingerprint lies in the output and is complete."""
    sidecar = read_sidecar(claim.folder, file_name)
    if sidecar is None or sidecar.fingerprint != fingerprint:
        return False
    try:
        return sidecar.is_of(storage.stat(storage.join(claim.output, file_name)))
    except FileNotFoundError:
        return False


def write(
    claim: Claim,
    file_name: str,
    fingerprint: str,
    content: Callable[[BinaryIO], tuple[pa.Table, Sequence[Rejected]]],
) -> None:
    """Writes a shard and then its sidecar.

    Args:
      claim: the job's claim, which names the folders of the shards and of the sidecars.
      file_name: the file name of the shard.
      fingerprint: a hash of everything that the shard is made from.
      content: a function that writes the shard to a file that cannot seek. It returns the sidecar's
        rows and the images that were left out.

    Raises:
      UsageError: another job has begun to write into this output.
    """
    work, target = claim.folder, storage.join(claim.output, file_name)
    version = storage.version(target)
    storage.remove(sidecar_path(work, file_name))
    checked: _Checksummed | None = None
    try:
        with storage.atomic_file(
            target, temporary=storage.join(work, file_name), replaces=version
        ) as file:
            checked = _Checksummed(file)
            rows, rejected = content(checked)  # type: ignore[arg-type]
            claim.check()
    except storage.Replaced:
        # Either two workers wrote this shard at the same time, or an upload succeeded but its
        # answer was lost, so that it was repeated. Both are fine if the content is equal.
        claim.check()
        if checked is None or storage.stat(target).crc32c != checked.crc32c:
            raise UsageError(f"{target}: another job has written it at the same time") from None
    assert checked is not None
    metadata = {
        "fingerprint": fingerprint,
        "num_bytes": checked.num_bytes,
        "crc32c": checked.crc32c,
        "rejected": [dataclasses.asdict(row) for row in rejected],
    }
    table = rows.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    claim.check()
    with storage.atomic_file(sidecar_path(work, file_name)) as file:
        pq.write_table(table, file)


class _Checksummed:
    """Passes writes on to a file and keeps the number of bytes and their CRC-32C."""

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
def progress(work: str, file_name: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that adds a number of images to a shard's progress file.

    The size of the file in bytes is the number of images that are done.

    The file is written at most once in PROGRESS_SECONDS, and at the end. In a bucket there is no
    such file, and the function does nothing.
    """
    if storage.is_bucket(work):
        yield lambda count: None
        return
    unwritten, written_at = 0, time.monotonic()
    with open(storage.join(work, f"{file_name}.progress"), "wb", buffering=0) as file:

        def add(count: int) -> None:
            nonlocal unwritten, written_at
            unwritten += count
            if time.monotonic() - written_at > PROGRESS_SECONDS:
                file.write(b"." * unwritten)
                unwritten, written_at = 0, time.monotonic()

        yield add
        file.write(b"." * unwritten)
