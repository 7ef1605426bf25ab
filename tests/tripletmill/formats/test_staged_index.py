"""The shards of a data set in a bucket are copied, and a copy is found again."""

import dataclasses
import re
import shutil
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from tests.fixtures.cloud.clients import client_of
from tests.fixtures.cloud.emulators import go_emulator
from tests.fixtures.cloud.shards import (
    BUCKET,
    Flipping,
    fetched,
    proxied,
    put_shards,
    staged_files,
)
from tests.fixtures.datasets import small_data_set
from tripletmill.errors import UsageError
from tripletmill.formats.index import DatasetIndex, DatasetInfo, load_index
from tripletmill.formats.staged_index import stage


@pytest.fixture(scope="module")
def emulator():
    with go_emulator() as found:
        found.make_bucket(BUCKET)
        yield found


def put(emulator, folder, *, seed=0):
    """Puts random shards into the bucket; returns the data set's index and the shards by name."""
    shards = put_shards(emulator, folder, seed=seed)
    info = DatasetInfo(
        directory=f"gs://{BUCKET}/{folder}",
        name="toy",
        num_shards={"train": len(shards)},
        num_images={"train": 1},
        num_bytes={"train": sum(map(len, shards.values()))},
        num_classes={"train": 1},
        num_rejected=0,
        settings={"quality": 90},
        input_fingerprint="0" * 64,
        shard_crc32c={"train": [google_crc32c.value(shard) for shard in shards.values()]},
    )
    columns = ("shard", "offset", "length", "label", "height", "width")
    rows = dict.fromkeys(columns, np.zeros(0, np.int32))
    paths = [info.path(name) for name in shards]
    return DatasetIndex(info=info, split="train", shards=paths, **rows), shards


def test_a_whole_data_set(emulator, monkeypatch, tmp_path, capsys):
    data = small_data_set(tmp_path)
    for path in data.iterdir():
        emulator.put(BUCKET, f"whole/{path.name}", path.read_bytes())
    index = load_index(str(data), "train")
    assert stage(index, folder=str(tmp_path / "none")) is index
    assert not (tmp_path / "none").exists()
    with proxied(emulator, monkeypatch) as proxy:
        for split in ("train", "val"):
            expected = load_index(str(data), split)
            found = load_index(f"gs://{BUCKET}/whole", split)
            staged = stage(found, folder=str(tmp_path / "cache"))
            assert staged.info is found.info
            assert [Path(p).read_bytes() for p in staged.shards] == [
                Path(p).read_bytes() for p in expected.shards
            ]
            assert [Path(p).name for p in staged.shards] == [Path(p).name for p in expected.shards]
            assert capsys.readouterr().err.startswith(f"staged {split}: ")
        [folder] = (tmp_path / "cache").iterdir()
        assert re.fullmatch(r"data-[0-9a-f]{16}", folder.name)
        before = fetched(proxy)
        again = stage(load_index(f"gs://{BUCKET}/whole", "train"), folder=str(tmp_path / "cache"))
        assert {n: c for n, c in fetched(proxy).items() if "tfrecord" in n} == {
            n: c for n, c in before.items() if "tfrecord" in n
        }
        [line] = capsys.readouterr().err.splitlines()
    count = len(again.shards)
    assert re.fullmatch(
        rf"staged train: {count} shards, \S+ kB in {folder}, {count} already there", line
    )


def test_where_a_copy_belongs(emulator, monkeypatch, tmp_path):
    """A copy of the same data set in another place is shared, a copy of another set never."""
    first, shards = put(emulator, "first")
    moved, _ = put(emulator, "moved")
    other, _ = put(emulator, "other", seed=1)
    folder = str(tmp_path)
    with proxied(emulator, monkeypatch) as proxy:
        assert stage(first, folder=folder).shards == stage(moved, folder=folder).shards
        assert fetched(proxy) == dict.fromkeys(shards, 1)
        assert not {*stage(first, folder=folder).shards} & {*stage(other, folder=folder).shards}
        settings = dataclasses.replace(first.info, settings={"quality": 50})
        stage(dataclasses.replace(first, info=settings), folder=folder)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("change", ["bytes", "gone"])
def test_wrong_in_the_bucket(emulator, monkeypatch, tmp_path, change):
    index, shards = put(emulator, "wrong")
    name = list(shards)[5]
    if change == "bytes":
        emulator.put(BUCKET, f"wrong/{name}", bytes(len(shards[name])))
        expected = f"{re.escape(index.shards[5])}: .*`python -m tripletmill verify gs://sets/wrong`"
    else:
        with emulator.client() as client:
            client.bucket(BUCKET).blob(f"wrong/{name}").delete()
        expected = f"gs://sets/wrong: shard {name} is missing"
    with proxied(emulator, monkeypatch) as proxy, pytest.raises(UsageError, match=expected):
        stage(index, folder=str(tmp_path))
    assert not fetched(proxy)


def test_without_checksums_in_the_data_set(emulator, monkeypatch, tmp_path):
    """An older data set has no checksums, so those of the bucket are used."""
    index, shards = put(emulator, "older")
    index = dataclasses.replace(index, info=dataclasses.replace(index.info, shard_crc32c={}))
    with (
        proxied(emulator, monkeypatch, (), Flipping),
        pytest.raises(OSError, match=r"damaged.*`python -m tripletmill verify gs://sets/older`"),
    ):
        stage(index, folder=str(tmp_path))
    with client_of(emulator, monkeypatch):
        stage(index, folder=str(tmp_path))
    assert staged_files(tmp_path) == shards


def test_folders(emulator, monkeypatch, tmp_path):
    index, shards = put(emulator, "folders")
    with client_of(emulator, monkeypatch):
        with pytest.raises(UsageError, match=r"Reading\.folder gs://.*only local paths"):
            stage(index, folder="gs://sets/cache")
        assert stage(index, folder=f"{tmp_path}/a/").shards[0].startswith(f"{tmp_path}/a/toy-")
        assert staged_files(tmp_path / "a") == shards
        full = shutil._ntuple_diskusage(10**6, 10**6, 0)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
        message = r"free; set another Reading\.folder, or Reading\.stream = True"
        with pytest.raises(UsageError, match=message):
            stage(index, folder=f"{tmp_path}/b")
