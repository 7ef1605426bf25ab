"""Reading gives exactly the records that were written, except for damaged ones."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.damaged import PAYLOAD, flip_byte
from trainer.data.reading import NONE, FileRecords, MemoryRecords
from tripletmill.formats.index import DatasetIndex, load_index
from tripletmill.formats.records import FRAMING_BYTES, read_record

KINDS = [FileRecords, MemoryRecords]


@pytest.fixture(scope="module")
def index(data_dir) -> DatasetIndex:
    index = load_index(str(data_dir), "train")
    assert len(set(index.shard.tolist())) > 2
    return index


@pytest.fixture
def copied_index(data_dir, tmp_path) -> DatasetIndex:
    """The index of a copy of the data set that a test may damage."""
    return load_index(str(shutil.copytree(data_dir, tmp_path / "data")), "train")


def expected(index, row) -> bytes:
    with open(index.shards[index.shard[row]], "rb") as file:
        return read_record(file, int(index.offset[row]))


def read(records, rows, group, how="read") -> list[bytes]:
    """Reads rows in a tf.data map, in groups of one size."""
    places = records.places(np.reshape(rows, (-1, group)))
    data = tf.data.Dataset.from_tensor_slices(places).map(getattr(records, how))
    return [record for batch in data.as_numpy_iterator() for record in batch]


@pytest.mark.parametrize("how", ["read", "read_each"])
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(data=st.data(), group=st.sampled_from([1, 2, 7, 16]))
def test_rows_become_their_records(index, kind, how, data, group):
    """Rows may come in any order, from any shards, and several times."""
    row = st.integers(0, len(index) - 1)
    rows = data.draw(st.lists(row, min_size=2 * group, max_size=2 * group))
    assert read(kind(index), rows, group, how) == [expected(index, row) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_of_every_shard(index, kind):
    rows = np.random.default_rng(0).permutation(len(index))
    assert read(kind(index), rows, 12) == [expected(index, row) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_places_keep_the_shape_of_rows(index, kind):
    rows = np.array([[[3, 1]], [[0, 30]]])
    places = kind(index).places(rows)
    assert {array.shape for array in places.values()} == {rows.shape}


def flip(index, at, number=1) -> set[int]:
    """Damages a record of shard 1 and returns its row."""
    row = int(np.flatnonzero(index.shard == 1)[number])
    flip_byte(index, row, at)
    return {row}


def cut(index, at, number=-1) -> set[int]:
    """Cuts shard 1 `at` bytes into a record, or -`at` bytes before its end if `at` is negative."""
    rows = np.flatnonzero(index.shard == 1)
    row = rows[number]
    at = at if at >= 0 else index.length[row] + FRAMING_BYTES + at
    os.truncate(index.shards[1], int(index.offset[row]) + int(at))
    return set(rows[rows >= row].tolist())


def remove(index) -> set[int]:
    os.remove(index.shards[1])
    return set(np.flatnonzero(index.shard == 1).tolist())


DAMAGE = {
    "length": lambda index: flip(index, 0),
    "high byte of the length": lambda index: flip(index, 7),
    "checksum of the length": lambda index: flip(index, 8),
    "first byte": lambda index: flip(index, PAYLOAD),
    "payload": lambda index: flip(index, PAYLOAD + 200),
    "two records": lambda index: flip(index, 0) | flip(index, PAYLOAD + 9, number=2),
    "cut before the last": lambda index: cut(index, 0),
    "cut in its length": lambda index: cut(index, 7),
    "cut in its payload": lambda index: cut(index, 100),
    "cut in its checksum": lambda index: cut(index, -1),
    "cut in the middle": lambda index: cut(index, 100, number=2),
    "file empty": lambda index: cut(index, 0, number=0),
    "file missing": remove,
}
DAMAGED = [
    (kind, damage)
    for kind in KINDS
    for damage in DAMAGE
    if (kind, damage) != (MemoryRecords, "file missing")  # memory needs every file
]


@pytest.mark.parametrize(("kind", "damage"), DAMAGED)
def test_damaged_records(copied_index, kind, damage):
    """read_each gives NONE for damaged records only; read may give NONE for their whole group."""
    payloads = [expected(copied_index, row) for row in range(len(copied_index))]
    lost = DAMAGE[damage](copied_index)
    none = NONE.encode()
    remaining = [none if row in lost else payloads[row] for row in range(len(copied_index))]
    records, rows = kind(copied_index), list(range(len(copied_index)))
    assert read(records, rows, 6, "read_each") == remaining
    found = read(records, rows, 6)
    for start in range(0, len(rows), 6):
        group = slice(start, start + 6)
        if lost.isdisjoint(rows[group]):
            assert found[group] == payloads[group]
        else:
            assert found[group] in (remaining[group], [none] * 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_record_alone(copied_index, kind):
    flip_byte(copied_index, 4)
    records = kind(copied_index)
    for how in ("read", "read_each"):
        assert read(records, [4, 5], 1, how) == [NONE.encode(), expected(copied_index, 5)]
