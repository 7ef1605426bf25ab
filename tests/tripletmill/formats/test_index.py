"""Loading a data set that is whole, missing or damaged."""

import json
import shutil

import pytest

from tests.fixtures.written import SHARDS, edit_info, write_data_set
from tripletmill.errors import UsageError
from tripletmill.formats import index
from tripletmill.formats.index import is_finished, load_index, load_info, read_lines


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("index") / "photos")


@pytest.fixture
def copy(data_set, tmp_path):
    return shutil.copytree(data_set, tmp_path / "data")


def test_info(data_set):
    info = load_info(str(data_set))
    assert info.num_images == {"gallery": 2, "query": 2, "train": 11}
    assert info.num_classes == {"gallery": 1, "query": 2, "train": 3}
    assert info.num_shards == {split: len(shards) for split, shards in SHARDS.items()}
    assert info.shard_lengths == {"gallery": [2], "query": [2], "train": [5, 6, 0]}
    assert [len(sums) for sums in info.shard_crc32c.values()] == [1, 1, 3]
    assert (info.columns, info.group) == (["x_camera"], "x_camera")
    assert info.duplicates["within class"] == 1
    assert (info.classes_left_out, info.classes_fallen_below) == (["f", "g"], ["c"])
    assert info.path("a") == str(data_set / "a")


@pytest.mark.parametrize("slash", ["", "/"])
def test_index(data_set, slash):
    train = load_index(f"{data_set}{slash}", "train")
    assert len(train) == 11
    assert train.shard.tolist() == [0] * 5 + [1] * 6
    assert train.label.tolist() == [0, 0, 0, 1, 1, 1, 1, 4, 4, 4, 4]
    assert train.offset[[0, 5]].tolist() == [0, 0]
    names = [f"photos-train.tfrecord-{shard:05d}-of-00003" for shard in range(3)]
    assert train.shards == [str(data_set / name) for name in names]
    assert train.column("source_id").to_pylist()[:2] == ["a/00.png", "a/01.png"]
    assert set(train.column("x_camera").to_pylist()) == {"camera 0", "camera 1"}
    with pytest.raises(UsageError, match=r"no column 'camera', only shard, .*, x_camera"):
        train.column("camera")


def test_class_in_two_splits(data_set):
    query, gallery = (load_index(str(data_set), split) for split in ("query", "gallery"))
    assert set(query.label) & set(gallery.label) == {3}
    names = {0: "a", 1: "b", 2: "c", 3: "d", 4: "e\nfünf"}
    assert query.class_names() == gallery.class_names() == names


def test_errors(copy, tmp_path):
    def error(path, split="train") -> str:
        with pytest.raises(UsageError) as caught:
            load_index(str(path), split)
        return str(caught.value)

    assert "no such folder; make it with `make preprocess`" in error(tmp_path / "nowhere")
    assert "no such folder" in error(copy / "features.json")
    assert "not finished, no dataset_info.json in it" in error(tmp_path)
    assert "gs:// only" in error("s3://bucket/data")
    assert "no bucket" in error("gs://")
    assert "no split 'dev', only gallery, query, train" in error(copy, "dev")
    shard = copy / "photos-query.tfrecord-00000-of-00001"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    assert f"the shards of query have {len(data) - 1:,} bytes, not" in error(copy, "query")
    shard.unlink()
    assert "shard photos-query.tfrecord-00000-of-00001 is missing" in error(copy, "query")
    (copy / "photos-train.index.parquet").write_bytes(b"PAR1 no more")
    assert "photos-train.index.parquet: cannot be read" in error(copy)

    edit_info(copy, lambda content, extra: extra["num_shards"].pop("query"))
    assert "its lists of splits differ" in error(copy)
    edit_info(copy, lambda content, extra: extra.update(format_version=2))
    assert "format version 2, this is version 1; remove the folder" in error(copy)
    path = copy / "dataset_info.json"
    for content in ('{"name": "somebody else\'s"}', "{", "[]", '{"releaseNotes": 1}', ""):
        path.write_text(content)
        assert "not written by tripletmill" in error(copy)
    assert is_finished(str(copy))
    path.unlink()
    assert not is_finished(str(copy))


def test_lines(tmp_path):
    path = tmp_path / "lines"
    rows = [{"name": name} for name in ("a", "line\u2028separator\r\x85", "", "x" * 40)]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    # A file is read a megabyte at a time, so a long first line moves the end of a piece through the
    # data; the longest ones lie in several pieces.
    before_a_piece_ends = [2**20 - number for number in range(1, len(data) + 2)]
    for length in (0, *before_a_piece_ends, 3 * 2**20):
        long_line = b"x" * length
        for end in (len(data), len(data) - 1):
            path.write_bytes(long_line + b"\n" + data[:end])
            first, *lines = read_lines(str(path))
            assert first == long_line
            assert [json.loads(line) for line in lines] == rows
    path.write_bytes(b"")
    assert list(read_lines(str(path))) == []
    path.write_bytes(b"\n\n")
    assert list(read_lines(str(path))) == [b"", b""]


@pytest.mark.parametrize("split", SHARDS)
def test_rows_that_lie_together(data_set, split):
    """The row groups of the index may end anywhere."""
    info = load_info(str(data_set))
    columns = ["offset", "source_id"]
    whole = index.read_index(info, split, columns)
    path = info.path(index.index_file(info.name, split))
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            rows = index.read_index_rows(path, range(start, stop), columns)
            assert rows.to_pylist() == whole.slice(start, stop - start).to_pylist()
