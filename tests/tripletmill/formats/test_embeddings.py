"""Embeddings on disk: what is written can be read, and every damage is noticed."""

import dataclasses
import io
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tripletmill.errors import UsageError
from tripletmill.formats import embeddings
from tripletmill.formats.embeddings import EmbeddingsInfo, Shard

TEXT = st.text(st.characters(codec="utf-8"), max_size=5)


def shard_bytes(**columns) -> bytes:
    file = io.BytesIO()
    embeddings.write_table(embeddings.make_table(**columns), file)
    return file.getvalue()


def write(folder: Path, shards: list[dict], dim: int) -> Path:
    """Writes a finished collection of these shards."""
    folder.mkdir(exist_ok=True)
    described = []
    for number, columns in enumerate(shards):
        name, data = embeddings.shard_file(number, len(shards)), shard_bytes(**columns)
        (folder / name).write_bytes(data)
        rows = len(columns["source_id"])
        described.append(Shard(name, rows, len(data), google_crc32c.value(data)))
    info = EmbeddingsInfo(
        directory=str(folder),
        model="m" * 64,
        dim=dim,
        num_rows=sum(shard.rows for shard in described),
        num_rejected=1,
        shards=described,
        input={"kind": "images", "fingerprint": "f"},
        settings={"batch_size": 2},
    )
    (folder / embeddings.INFO_FILE).write_bytes(embeddings.info_json(info))
    assert embeddings.load_info(str(folder)) == info
    return folder


COLUMNS = ("source_id", "split", "label", "class_name")


def columns(*rows: tuple, embedding: list) -> dict:
    """Columns of rows with a source id, a split, a label and a class name."""
    vectors = np.array(embedding, np.float32).reshape(-1, 3)
    texts = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
    return {**texts, "embedding": vectors}


FIRST = columns(
    ("a/1.png", "train", 2**40, "a"),
    ("ü/2.png", None, None, None),
    embedding=[[1, 0, 0], [0, -0.6, 0.8]],
)
SECOND = columns(("c", "test", 0, "c"), embedding=[[0, 1, 0]])
NONE = columns(embedding=[])


@pytest.fixture
def collection(tmp_path) -> Path:
    return write(tmp_path / "embeddings", [FIRST, NONE, SECOND], dim=3)


def test_all_at_once(collection):
    found = embeddings.load_embeddings(str(collection))
    assert found.source_id.tolist() == ["a/1.png", "ü/2.png", "c"]
    assert found.split.tolist() == ["train", None, "test"]
    assert found.label.tolist() == [2**40, -1, 0]
    assert found.label.dtype == np.int64
    assert found.class_name.tolist() == ["a", None, "c"]
    assert found.embedding.dtype == np.float32
    np.testing.assert_array_equal(
        found.embedding, np.array([[1, 0, 0], [0, -0.6, 0.8], [0, 1, 0]], np.float32)
    )
    assert len(found) == found.info.num_rows == 3


def test_shard_by_shard(collection):
    found = list(embeddings.iter_shards(str(collection)))
    assert [each.source_id.tolist() for each in found] == [["a/1.png", "ü/2.png"], [], ["c"]]
    assert [each.embedding.shape for each in found] == [(2, 3), (0, 3), (1, 3)]


@pytest.mark.parametrize("shards", [[], [NONE]])
def test_none_at_all(tmp_path, shards):
    found = embeddings.load_embeddings(str(write(tmp_path / "none", shards, dim=3)))
    assert found.embedding.shape == (0, 3)
    assert found.label.shape == found.split.shape == (0,)


ROW = st.tuples(
    TEXT,
    st.none() | TEXT,
    st.none() | st.integers(0, 2**63 - 1),
    st.none() | TEXT,
    arrays.arrays(np.float32, 2, elements=st.floats(-1, 1, width=32)),
)


@given(rows=st.lists(ROW, max_size=4))
def test_a_table_holds_what_it_was_given(rows):
    source_id, split, label, class_name, vectors = zip(*rows, strict=True) if rows else [()] * 5
    embedding = np.array(vectors, np.float32).reshape(-1, 2)
    columns = {"source_id": source_id, "split": split, "label": label, "class_name": class_name}
    data = shard_bytes(**columns, embedding=embedding)
    assert data == shard_bytes(**columns, embedding=np.asfortranarray(embedding))
    # This reads the files without any code of this project.
    read = pq.read_table(pa.BufferReader(data)).to_pydict()
    names = ("source_id", "split", "label", "class")
    assert [tuple(read[name]) for name in names] == [source_id, split, label, class_name]
    assert read["embedding"] == embedding.tolist()


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (np.zeros((2, 3)), "float64"),
        (np.zeros(6, np.float32), r"\(6,\)"),
        (np.array([[0, 0, np.nan]] * 2, np.float32), "not finite"),
        (np.array([[0, 0, np.inf]] * 2, np.float32), "not finite"),
        (np.zeros((3, 3), np.float32), "2"),
    ],
)
def test_what_is_no_embedding_is_refused(embedding, message):
    with pytest.raises(ValueError, match=message):
        embeddings.make_table(**{**FIRST, "embedding": embedding})


def spoil(collection: Path, how: str) -> None:
    shard = collection / embeddings.shard_file(0, 3)
    data = bytearray(shard.read_bytes())
    if how == "missing":
        shard.unlink()
    elif how == "flipped":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif how == "short":
        shard.write_bytes(data[:-1])
    else:
        # The file is valid, but it is not the file that the info describes.
        columns = NONE if how == "rows" else {**FIRST, "embedding": np.zeros((2, 4), np.float32)}
        other = shard_bytes(**columns)
        shard.write_bytes(other)
        info = embeddings.load_info(str(collection))
        first = dataclasses.replace(
            info.shards[0], num_bytes=len(other), crc32c=google_crc32c.value(other)
        )
        info = dataclasses.replace(info, shards=[first, *info.shards[1:]])
        (collection / embeddings.INFO_FILE).write_bytes(embeddings.info_json(info))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing"),
        ("flipped", "damaged"),
        ("short", "damaged"),
        ("rows", "other columns or rows"),
        ("dim", "other columns or rows"),
    ],
)
def test_damage_is_named(collection, how, message):
    spoil(collection, how)
    name = embeddings.shard_file(0, 3)
    for read in (embeddings.load_embeddings, lambda folder: [*embeddings.iter_shards(folder)]):
        with pytest.raises(UsageError, match=f"{name}.*{message}"):
            read(str(collection))


def test_unfinished(collection):
    assert embeddings.is_finished(str(collection))
    (collection / embeddings.INFO_FILE).unlink()
    assert not embeddings.is_finished(str(collection))
    with pytest.raises(UsageError, match=r"not finished, no embeddings_info\.json in it; make"):
        embeddings.load_embeddings(str(collection))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 2', "format version 2"),
        ('"num_rows": 3', '"num_rows": 4', "not written by tripletmill"),
        ('"dim"', '"dims"', "not written by tripletmill"),
        ("{", "[", "not written by tripletmill"),
    ],
)
def test_an_info_that_is_none(collection, old, new, message):
    path = collection / embeddings.INFO_FILE
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        embeddings.load_embeddings(str(collection))
