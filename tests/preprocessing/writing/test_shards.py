"""One shard: its records, its rows of the index, and the images that are rejected."""

import errno
import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.writing import shards
from preprocessing.writing.claim import Claim
from preprocessing.writing.shards import ShardTask, index_schema, read_canonical, write_shard
from preprocessing.writing.sidecars import Sidecar, read_sidecar
from tests.fixtures.images import encode
from tripletmill.errors import UsageError
from tripletmill.formats.records import decode_example, read_records
from tripletmill.images import ImageSettings, canonical_jpeg

SETTINGS = ImageSettings(short_side=16)
IMAGES = [encode("RGB", (40 + 4 * i, 32)) for i in range(4)]


def image_ref(folder: Path, name: str, data: bytes, **values) -> ImageRef:
    (folder / name).write_bytes(data)
    return ImageRef(name, str(folder / name), "a", len(data), **values)


@pytest.fixture
def task(tmp_path) -> ShardTask:
    """Four images and a broken one, with a column."""
    data = [*IMAGES[:2], b"no image", *IMAGES[2:]]
    refs = [image_ref(tmp_path, f"{i}.png", d, extra=(f"c{i}",)) for i, d in enumerate(data)]
    return ShardTask("toy.tfrecord", 3, [(7, ref) for ref in refs], columns=("camera",))


def write(task: ShardTask, output: Path, *, threads: int = 2, version: int = 1) -> int:
    claim = Claim(str(output), {})
    claim.take(replaces=None)
    return write_shard(
        task, claim=claim, settings={"version": version}, image=SETTINGS, threads=threads
    )


def sidecar_in(output: Path) -> Sidecar:
    sidecar = read_sidecar(Claim(str(output), {}).folder, "toy.tfrecord")
    assert sidecar is not None
    return sidecar


def test_records_and_rows(task, tmp_path):
    output = tmp_path / "out"
    assert write(task, output) == 5
    with open(output / "toy.tfrecord", "rb") as file:
        records = list(read_records(file))
    sidecar = sidecar_in(output)
    assert sidecar.rejected == [Rejected("2.png", "a", sidecar.rejected[0].reason)]
    assert sidecar.rows.schema == index_schema(["camera"])
    rows = sidecar.rows.to_pylist()
    for row, (offset, payload), data in zip(rows, records, IMAGES, strict=True):
        image = canonical_jpeg(data, SETTINGS)
        sha256 = hashlib.sha256(image.jpeg).digest()
        assert row == {
            "shard": 3,
            "offset": offset,
            "length": len(payload),
            "label": 7,
            "height": image.height,
            "width": image.width,
            "source_id": row["source_id"],
            "sha256": sha256,
            "source_sha256": hashlib.sha256(data).digest(),
            "x_camera": f"c{row['source_id'][0]}",
        }
        assert decode_example(payload) == {
            "image/encoded": image.jpeg,
            "image/format": b"jpeg",
            "image/height": image.height,
            "image/width": image.width,
            "image/class/label": 7,
            "image/class/text": b"a",
            "image/source_id": row["source_id"].encode(),
            "image/key/sha256": sha256,
        }
    assert [row["source_id"] for row in rows] == ["0.png", "1.png", "3.png", "4.png"]


def test_a_finished_shard_is_not_read_again(task, tmp_path, monkeypatch):
    write(task, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(shards, "read_image", pytest.fail)
        assert write(task, tmp_path / "out") == 0
    assert write(task, tmp_path / "out", version=2) == 5


def test_the_number_of_threads_does_not_change_the_bytes(task, tmp_path):
    for threads in (1, 3):
        write(task, tmp_path / str(threads), threads=threads)
    one, three = ((tmp_path / name / "toy.tfrecord").read_bytes() for name in "13")
    assert one == three
    assert sidecar_in(tmp_path / "1").rows.equals(sidecar_in(tmp_path / "3").rows)


def test_a_shard_of_no_readable_image_is_empty(tmp_path):
    ref = image_ref(tmp_path, "0.png", b"no image")
    write(ShardTask("toy.tfrecord", 0, [(0, ref)]), tmp_path / "out")
    assert (tmp_path / "out/toy.tfrecord").read_bytes() == b""
    assert sidecar_in(tmp_path / "out").rows.schema == index_schema([])


def test_fingerprint():
    ref = ImageRef("a/1.png", "/x/a/1.png", "a", 5, modified=7, extra=("c",))
    task = ShardTask("toy", 0, [(1, ref)])
    # This value is fixed: with another one, an interrupted job would start from the beginning.
    expected = "72de2c378f87d5fb29d8c01b28a6c645e61ca0925c07749c9b26ad55f5086ae9"
    assert task.fingerprint({"b": 1, "a": 2}) == task.fingerprint({"a": 2, "b": 1}) == expected


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), "cannot be read: No such file"),
        (MemoryError(), "not enough memory to read it"),
    ],
)
def test_an_image_that_cannot_be_read(monkeypatch, error, reason):
    def fail(ref):
        raise error

    monkeypatch.setattr(shards, "read_image", fail)
    assert read_canonical(ImageRef("1", "/1.png", "a", 1), SETTINGS) == reason


def test_a_failing_disk_is_no_reason_to_leave_out_an_image(monkeypatch):
    def fail(ref):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shards, "read_image", fail)
    problem = "^/1.png: Input/output error; run the same command again to continue$"
    with pytest.raises(UsageError, match=problem):
        read_canonical(ImageRef("1", "/1.png", "a", 1), SETTINGS)


def test_columns_come_last_in_the_schema():
    schema = index_schema(["b", "a"])
    assert schema.names[-3:] == ["source_sha256", "x_b", "x_a"]
    assert schema.field("x_a").type == pa.string()
