"""A data set that is not there, or not whole."""

import json
import shutil

import pytest

from preprocessing.errors import UsageError
from preprocessing.index import load_index, load_info
from tests.fixtures.datasets import small_data_set


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return small_data_set(tmp_path_factory.mktemp("index"), classes=4, images=4)


@pytest.fixture
def copy(data_set, tmp_path):
    return shutil.copytree(data_set, tmp_path / "data")


def test_splits(data_set):
    info = load_info(str(data_set))
    assert info.num_images == {"test": 4, "train": 8, "val": 4}
    assert len(load_index(str(data_set), "train")) == 8


def test_errors(copy, tmp_path):
    def error(path, split="train") -> str:
        with pytest.raises(UsageError) as caught:
            load_index(str(path), split)
        return str(caught.value)

    assert "no such folder; make it with `make preprocess`" in error(tmp_path / "nowhere")
    assert "no finished data set" in error(tmp_path)
    assert "only local paths" in error("gs://bucket/data")
    assert "no split 'dev', only test, train, val" in error(copy, "dev")
    shard = copy / "data-val.tfrecord-00000-of-00001"
    shard.rename(tmp_path / "aside")
    assert "shard data-val.tfrecord-00000-of-00001 is missing" in error(copy, "val")
    (copy / "data-train.index.parquet").write_bytes(b"PAR1 no more")
    assert "data-train.index.parquet: cannot be read" in error(copy)

    path = copy / "dataset_info.json"
    content = json.loads(path.read_text())
    extra = json.loads(content["releaseNotes"]["tripletmill"])
    extra["format_version"] = 2
    content["releaseNotes"]["tripletmill"] = json.dumps(extra)
    path.write_text(json.dumps(content))
    assert "format version 2, this is version 1; preprocess again" in error(copy)
    path.write_text('{"name": "somebody else\'s"}')
    assert "not written by tripletmill" in error(copy)
    path.write_text("{")
    assert "not written by tripletmill" in error(copy)
