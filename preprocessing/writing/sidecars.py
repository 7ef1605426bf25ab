"""Shards that are written whole or not at all, each with a sidecar that says what it was made from.

A shard with the right sidecar is finished and is not made again. Sidecars lie in a work folder and
go when all is committed.
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
    """What is known of a finished shard.

    Attributes:
      rows: one for each row of the shard, with what the commit needs of it.
      rejected: what was left out.
      fingerprint: of all that went in.
      num_bytes: of the shard.
      crc32c: of the shard.
    """

    rows: pa.Table
    rejected: Sequence[Rejected]
    fingerprint: str
    num_bytes: int
    crc32c: int

    def is_of(self, shard: storage.FileInfo) -> bool:
        """Whether a file is the shard that was written, by size and, in a bucket, checksum."""
        return shard.size == self.num_bytes and shard.crc32c in (None, self.crc32c)


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


def read_sidecars(claim: Claim, files: Sequence[str]) -> Iterator[Sidecar]:
    """Sidecars of these shards, in order; some are read at once, since a bucket takes its time.

    Raises:
      UsageError: a shard or its sidecar is not there, or not whole.
    """
    present = {info.path: info for info in storage.list_files(claim.output)}
    with ThreadPoolExecutor(SIDECARS_AT_ONCE) as pool:
        for start in range(0, len(files), SIDECARS_AT_ONCE):
            some = files[start : start + SIDECARS_AT_ONCE]
            yield from pool.map(lambda file: _whole(claim, file, present), some)


def _whole(claim: Claim, file: str, present: Mapping[str, storage.FileInfo]) -> Sidecar:
    sidecar = read_sidecar(claim.folder, file)
    info = present.get(storage.join(claim.output, file))
    if sidecar is None or info is None or not sidecar.is_of(info):
        raise UsageError(f"{claim.output}: shard {file} is not whole; run the same command again")
    return sidecar


def is_finished(claim: Claim, file_name: str, fingerprint: str) -> bool:
    """Whether a shard is there, made from what the fingerprint stands for."""
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
    """Writes a shard, and then its sidecar.

    Args:
      claim: the job's, with the folder of shards and that of sidecars.
      file_name: of the shard.
      fingerprint: of all that goes in.
      content: writes the shard to a file that cannot seek; gives the sidecar's rows, and what was
        left out.

    Raises:
      UsageError: another job has begun in this output.
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
        # Two workers on one shard, or an upload that was carried out although its answer was lost.
        claim.check()
        if checked is None or storage.stat(target).crc32c != checked.crc32c:
            raise UsageError(f"{target}: another job has written it at the same time") from None
    assert checked is not None
    said = {
        "fingerprint": fingerprint,
        "num_bytes": checked.num_bytes,
        "crc32c": checked.crc32c,
        "rejected": [dataclasses.asdict(row) for row in rejected],
    }
    table = rows.replace_schema_metadata({METADATA_KEY: json.dumps(said).encode()})
    claim.check()
    with storage.atomic_file(sidecar_path(work, file_name)) as file:
        pq.write_table(table, file)


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
def progress(work: str, file_name: str) -> Iterator[Callable[[int], None]]:
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
