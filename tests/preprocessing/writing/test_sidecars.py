"""Shards that are written as a whole or not at all, each with a sidecar."""

import contextlib
import os
from pathlib import Path

import google_crc32c
import pyarrow as pa
import pytest

from preprocessing.sources.references import Rejected
from preprocessing.writing import sidecars
from preprocessing.writing.claim import Claim
from tripletmill.errors import UsageError
from tripletmill.storage import storage

DATA = b"first, second"
REJECTED = [Rejected("a/ü.png", "a", "not an image"), Rejected("b", "", "hidden", lost=False)]


@pytest.fixture
def claim(tmp_path) -> Claim:
    claim = Claim(str(tmp_path), {"job": 1})
    claim.take(replaces=None)
    return claim


def write(claim: Claim, file_name: str = "shard", *, data: bytes = DATA) -> None:
    def content(file):
        for start in range(0, len(data), 4):
            file.write(data[start : start + 4])
        return pa.table({"length": [len(data)]}), REJECTED

    sidecars.write(claim, file_name, "fingerprint", content)


def files_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir() if path.is_file()}


def test_what_is_written_is_read_back(claim):
    write(claim)
    assert Path(claim.output, "shard").read_bytes() == DATA
    sidecar = sidecars.read_sidecar(claim.folder, "shard")
    assert sidecar is not None
    assert sidecar.rows.equals(pa.table({"length": [len(DATA)]}))
    assert sidecar.rejected == REJECTED
    assert (sidecar.fingerprint, sidecar.num_bytes) == ("fingerprint", len(DATA))
    assert sidecar.crc32c == google_crc32c.value(DATA)
    assert sidecars.read_sidecar(claim.folder, "another") is None


def test_a_shard_is_finished_with_its_fingerprint_and_its_size(claim):
    assert not sidecars.is_finished(claim, "shard", "fingerprint")
    write(claim)
    assert sidecars.is_finished(claim, "shard", "fingerprint")
    assert not sidecars.is_finished(claim, "shard", "another fingerprint")
    os.truncate(Path(claim.output, "shard"), 3)
    assert not sidecars.is_finished(claim, "shard", "fingerprint")
    Path(claim.output, "shard").unlink()
    assert not sidecars.is_finished(claim, "shard", "fingerprint")


def test_a_file_in_a_bucket_is_known_by_its_checksum():
    sidecar = sidecars.Sidecar(pa.table({}), [], "", num_bytes=3, crc32c=7)
    infos = [storage.FileInfo("shard", 3, 0, crc32c=crc32c) for crc32c in (None, 7, 8)]
    assert [sidecar.is_of(info) for info in infos] == [True, True, False]


def test_a_shard_that_fails_leaves_nothing(claim):
    def content(file):
        file.write(b"half of it")
        raise MemoryError

    write(claim)
    with pytest.raises(MemoryError):
        sidecars.write(claim, "shard", "fingerprint", content)
    assert files_in(claim.folder) == set()
    assert files_in(claim.output) == {"shard"}  # the former shard, which is not finished any more
    assert not sidecars.is_finished(claim, "shard", "fingerprint")


def test_a_job_that_was_overtaken_writes_no_shard(claim):
    def content(file):
        Claim(claim.output, {"job": 2}).take(replaces=None)
        return pa.table({}), []

    with pytest.raises(UsageError, match="another job has begun to write there"):
        sidecars.write(claim, "shard", "fingerprint", content)
    assert files_in(claim.output) == set()


@pytest.mark.parametrize("same", [True, False])
def test_another_worker_has_written_the_shard(claim, monkeypatch, same):
    """In a bucket, a worker may find that another one was faster."""
    atomic_file = storage.atomic_file

    @contextlib.contextmanager
    def replaced(path, **arguments):
        with atomic_file(path, **arguments) as file:
            yield file
        if path.endswith("/shard"):
            raise storage.Replaced

    crc32c = google_crc32c.value(DATA if same else b"other data")
    info = storage.FileInfo("shard", len(DATA), 0, crc32c=crc32c)
    monkeypatch.setattr(storage, "atomic_file", replaced)
    monkeypatch.setattr(storage, "stat", lambda path: info)
    if same:
        write(claim)
        assert sidecars.is_finished(claim, "shard", "fingerprint")
    else:
        with pytest.raises(UsageError, match="/shard: another job has written it at the same time"):
            write(claim)


def test_sidecars_come_in_order(claim):
    names = [f"shard-{i:02}" for i in range(sidecars.SIDECARS_AT_ONCE + 2)]
    for i, name in enumerate(names):
        write(claim, name, data=bytes(i))
    found = list(sidecars.read_sidecars(claim, names[::-1]))
    assert [sidecar.num_bytes for sidecar in found] == list(range(len(names)))[::-1]
    assert list(sidecars.read_sidecars(claim, [])) == []


@pytest.mark.parametrize("damage", ["no sidecar", "no shard", "short"])
def test_a_shard_is_incomplete(claim, damage):
    for name in ("one", "two"):
        write(claim, name)
    if damage == "no sidecar":
        storage.remove(sidecars.sidecar_path(claim.folder, "two"))
    elif damage == "no shard":
        Path(claim.output, "two").unlink()
    else:
        os.truncate(Path(claim.output, "two"), 1)
    with pytest.raises(UsageError, match=r"shard two is incomplete; run the same command again$"):
        list(sidecars.read_sidecars(claim, ["one", "two"]))


@pytest.mark.parametrize("seconds", [0, 1000])
def test_progress_is_one_byte_per_image(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(sidecars, "PROGRESS_SECONDS", seconds)
    path = tmp_path / "shard.progress"
    with sidecars.progress(str(tmp_path), "shard") as progress:
        progress(2)
        progress(3)
        assert path.stat().st_size == (0 if seconds else 5)
    assert path.stat().st_size == 5


def test_a_bucket_has_no_progress_file():
    with sidecars.progress("gs://bucket/work", "shard") as progress:
        progress(2)
