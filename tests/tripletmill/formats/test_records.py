"""tf.Example and TFRecord framing, compared with TensorFlow's reader and writer."""

import io
import pickle
from typing import Any, SupportsIndex, cast

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tripletmill.formats.records import (
    FRAMING_BYTES,
    DamagedRecord,
    RecordWriter,
    decode_example,
    encode_example,
    read_record,
    read_records,
)

FEATURES: dict[str, bytes | str | SupportsIndex] = {
    "image/width": 384,
    "image/height": 256,
    "image/encoded": bytes(range(256)) * 40,
    "image/class/text": "Zürich",
    "image/class/label": 2**62,
    "image/source_id": "",
    "negative": -1,
}
DECODED = {
    key: value.encode() if isinstance(value, str) else value
    for key, value in sorted(FEATURES.items())
}
PAYLOADS = [b"", b"a", bytes(range(256)) * 300, b"\0" * 12, encode_example(FEATURES)]

values = st.one_of(st.binary(), st.text(), st.integers(-(2**63), 2**63 - 1))
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def write_all(payloads):
    """Returns the content of the file and the records' offsets."""
    file = io.BytesIO()
    with RecordWriter(file) as writer:
        offsets = [writer.write(payload) for payload in payloads]
    return file.getvalue(), offsets


# tf.Example


def test_tensorflow_reads_our_example():
    example = tf.train.Example.FromString(encode_example(FEATURES))
    found = {}
    for key, feature in example.features.feature.items():
        (found[key],) = feature.bytes_list.value or feature.int64_list.value
    assert found == DECODED
    kinds = {
        key: tf.io.FixedLenFeature([], tf.int64 if isinstance(value, int) else tf.string)
        for key, value in FEATURES.items()
    }
    parsed = tf.io.parse_single_example(encode_example(FEATURES), kinds)
    assert {key: tensor.numpy() for key, tensor in parsed.items()} == DECODED


def test_same_bytes_as_tensorflow():
    example = tf.train.Example()
    for key, value in DECODED.items():
        feature = example.features.feature[key]
        kind = feature.int64_list if isinstance(value, int) else feature.bytes_list
        kind.value.append(value)
    payload = example.SerializeToString(deterministic=True)
    assert encode_example(FEATURES) == payload
    assert decode_example(payload) == DECODED


@quick
@given(features=st.dictionaries(st.text(), values))
def test_example_round_trip(features):
    payload = encode_example(features)
    assert decode_example(payload) == {
        key: value.encode() if isinstance(value, str) else value for key, value in features.items()
    }
    assert encode_example(dict(reversed(features.items()))) == payload
    assert list(decode_example(payload)) == sorted(features)


def test_numpy_integers():
    assert decode_example(encode_example({"a": np.int32(7)})) == {"a": 7}


@pytest.mark.parametrize(
    ("value", "error"),
    [(value, TypeError) for value in (1.0, None, [1], bytearray(b"a"))]
    + [(value, ValueError) for value in (2**63, -(2**63) - 1)],
)
def test_other_values_are_refused(value, error):
    with pytest.raises(error):
        encode_example({"a": value})


def test_decode_refuses_what_is_not_one_value_a_feature():
    several, floats, nothing = tf.train.Example(), tf.train.Example(), tf.train.Example()
    several.features.feature["a"].int64_list.value.extend([1, 2])
    floats.features.feature["a"].float_list.value.append(1)
    nothing.features.feature["a"].SetInParent()
    for example, problem in (
        (several, "feature 'a' holds 2 values, not one"),
        (floats, "feature 'a' holds float_list, not bytes or an integer"),
        (nothing, "feature 'a' holds nothing, not bytes or an integer"),
    ):
        with pytest.raises(ValueError, match=problem):
            decode_example(example.SerializeToString())
    with pytest.raises(ValueError, match="not a serialized tf"):
        decode_example(b"\xff\xff")


# Framing


def test_tensorflow_reads_our_file(tmp_path):
    data, _ = write_all(PAYLOADS)
    path = tmp_path / "ours"
    path.write_bytes(data)
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == PAYLOADS


def test_we_read_and_write_tensorflows_file(tmp_path):
    path = tmp_path / "theirs"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in PAYLOADS:
            writer.write(payload)
    data, offsets = write_all(PAYLOADS)
    assert path.read_bytes() == data
    with path.open("rb") as file:
        assert list(read_records(file)) == list(zip(offsets, PAYLOADS, strict=True))


@quick
@given(payloads=st.lists(st.binary(max_size=300)))
def test_offsets(payloads):
    data, offsets = write_all(payloads)
    assert len(data) == sum(len(payload) + FRAMING_BYTES for payload in payloads)
    file = io.BytesIO(data)
    assert list(read_records(file)) == list(zip(offsets, payloads, strict=True))
    for offset, payload in reversed(list(zip(offsets, payloads, strict=True))):
        assert read_record(file, offset) == payload


def test_offsets_go_on_where_the_file_does(tmp_path):
    path = tmp_path / "file"
    offsets = []
    for _ in range(2):
        with path.open("ab") as file, RecordWriter(file) as writer:
            offsets += [writer.write(b"one"), writer.write(b"three")]
    with path.open("rb") as file:
        assert [offset for offset, _ in read_records(file)] == offsets
        file.seek(offsets[2])
        assert [offset for offset, _ in read_records(file)] == offsets[2:]


class Stream(io.RawIOBase):
    """A stream without a position; it returns at most three bytes and accepts all bytes."""

    def __init__(self, data=b""):
        self.data = data

    def readable(self):
        return True

    def writable(self):
        return True

    def read(self, count=-1):
        part, self.data = self.data[:count], self.data[count:]
        return part

    def write(self, data):
        self.data += data


def test_streams():
    data, offsets = write_all(PAYLOADS)
    stream: Any = Stream()
    with RecordWriter(stream) as writer:
        assert [writer.write(payload) for payload in PAYLOADS] == offsets
    assert stream.data == data
    assert list(read_records(cast(Any, Stream(data)))) == list(zip(offsets, PAYLOADS, strict=True))


# Damage


def test_every_flipped_bit_is_noticed():
    data, offsets = write_all([b"first", b"payload", b"last"])
    for position in range(offsets[1], offsets[2]):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            file = io.BytesIO(damaged)
            with pytest.raises(DamagedRecord) as caught:
                read_record(file, offsets[1])
            assert caught.value.offset == offsets[1]
            file.seek(0)
            records = read_records(file)
            assert next(records) == (0, b"first")
            with pytest.raises(DamagedRecord, match=f"damaged record at offset {offsets[1]}: "):
                next(records)


def test_every_truncation_is_noticed():
    data, offsets = write_all([b"first", b"last"])
    for length in range(len(data)):
        file = io.BytesIO(data[:length])
        with pytest.raises(DamagedRecord) as caught:
            read_record(file, offsets[1])
        assert caught.value.offset == offsets[1]
        if length not in (0, offsets[1]):  # a cut between records is visible in the index only
            file.seek(0)
            with pytest.raises(DamagedRecord):
                list(read_records(file))


def test_wrong_offset():
    data, offsets = write_all([b"first" * 10, b"last"])
    for offset in set(range(len(data) + 20)) - set(offsets):
        with pytest.raises(DamagedRecord):
            read_record(io.BytesIO(data), offset)


def test_damaged_record_crosses_processes():
    error = pickle.loads(pickle.dumps(DamagedRecord(12, "the file ends within it")))
    assert str(error) == "damaged record at offset 12: the file ends within it"
