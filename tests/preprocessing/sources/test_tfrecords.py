"""Images in TFRecord files: what is listed, what is rejected, and what is read."""

import dataclasses
import hashlib
import io
import os
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.sources.tfrecords import RecordsInput, TFRecordSource, read_image
from tripletmill.errors import UsageError
from tripletmill.formats.records import (
    FRAMING_BYTES,
    DamagedRecord,
    RecordWriter,
    encode_example,
    example_features,
    read_records,
)
from tripletmill.formats.tfds_layout import features_json
from tripletmill.images import BadImage

IMAGE, LABEL = "image/encoded", "image/class/text"
GOOD = {IMAGE: b"an image", LABEL: "Zürich"}


def example(features: dict[str, Any]) -> bytes:
    """A tf.train.Example.

    A feature is a value or a list of values, or None for a feature without a kind.
    """
    message = tf.train.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        if values is None:
            feature.SetInParent()
            continue
        values = values if isinstance(values, list) else [values]
        values = [value.encode() if isinstance(value, str) else value for value in values]
        kind = feature.int64_list
        if values and isinstance(values[0], float):
            kind = feature.float_list
        elif not values or isinstance(values[0], bytes):
            kind = feature.bytes_list
        kind.value.extend(values)
        kind.SetInParent()
    return message.SerializeToString()


def framed(payloads: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """The content of a file, and the offsets of its records."""
    file = io.BytesIO()
    with RecordWriter(file) as writer:
        offsets = [writer.write(payload) for payload in payloads]
    return file.getvalue(), offsets


def flipped(data: bytes, position: int) -> bytes:
    """The data with one flipped bit."""
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.fixture
def listed(tmp_path):
    """Writes payloads, or the content of a file, and lists them."""

    def write_and_list(content, **options):
        data = content if isinstance(content, bytes) else framed(content)[0]
        path = tmp_path / "a.tfrecord"
        path.write_bytes(data)
        return list(TFRecordSource(str(path), RecordsInput(**options)).list_part(str(path)))

    return write_and_list


def images_of(source) -> list[ImageRef]:
    """All images that a source lists; asserts that nothing is rejected."""
    found = [found for part in source.parts() for found in source.list_part(part)]
    assert all(isinstance(ref, ImageRef) for ref in found)
    return found


def one_rejected(found) -> Rejected:
    (rejected,) = found
    assert isinstance(rejected, Rejected)
    return rejected


# Records of other projects


def test_all_features_of_an_example():
    features = {"b": [b"\xff", b""], "i": [-1, 2**62], "f": [0.5, 0.25], "n": [], "k": None}
    assert example_features(example(features)) == features | {"k": []}
    assert list(example_features(example(features))) == sorted(features)
    assert example_features(b"") == {}
    with pytest.raises(ValueError, match="not a serialized"):
        example_features(b"\xff\xff")


def test_reading_goes_on_after_a_damaged_payload():
    payloads = [b"one", b"two", b"three", b"four"]
    data, offsets = framed(payloads)
    file = io.BytesIO(flipped(data, offsets[2] + 14))
    with pytest.raises(DamagedRecord) as caught:
        list(read_records(file))
    damaged = pickle.loads(pickle.dumps(caught.value))
    assert (damaged.offset, damaged.next_offset, file.tell()) == (offsets[2], *2 * [offsets[3]])
    assert list(read_records(file)) == [(offsets[3], b"four")]
    for broken in (flipped(data, offsets[2] + 3), data[: offsets[2] + 15], data[: offsets[2] + 5]):
        with pytest.raises(DamagedRecord) as caught:
            list(read_records(io.BytesIO(broken)))
        assert (caught.value.offset, caught.value.next_offset) == (offsets[2], None)


# What is listed


def test_our_records(tmp_path):
    images = [b"first", b"", os.urandom(100_000)]
    data, offsets = framed([encode_example({IMAGE: image, LABEL: "Zürich"}) for image in images])
    path = tmp_path / "a.tfrecord"
    path.write_bytes(data)
    source = TFRecordSource(str(path))
    source.check()
    assert list(source.parts()) == [str(path)]
    found = images_of(source)
    assert found == [
        ImageRef(
            source_id=f"a.tfrecord@{offset:012}",
            path=str(path),
            class_name="Zürich",
            size=len(image),
            md5=hashlib.md5(image).hexdigest(),
            offset=offset,
            feature=IMAGE,
        )
        for image, offset in zip(images, offsets, strict=True)
    ]
    assert [read_image(ref) for ref in found] == images
    assert (source.columns, source.group) == ((), None)
    assert pickle.loads(pickle.dumps((source, found))) == (source, found)


def test_tensorflows_records(tmp_path):
    path = tmp_path / "theirs"
    features = {
        "jpeg": b"image",
        "class": 7,
        "id": "left",
        "fold": "test",
        "camera": "c1",
        "year": 1999,
        "weight": 0.1,
        "boxes": [0.5, 0.25, 1.0],
        "nothing": [],
        "no kind": None,
    }
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example(features))
        writer.write(example({**features, "id": "right", "fold": ""}))
    options = RecordsInput(
        image="jpeg",
        label="class",
        source_id="id",
        split="fold",
        columns=("year", "weight", "nothing", "no kind"),
        group="camera",
    )
    source = TFRecordSource(str(path), options)
    source.check()
    assert source.columns == ("year", "weight", "nothing", "no kind", "camera")
    assert source.group == "camera"
    left, right = images_of(source)
    assert (left.source_id, left.class_name, left.split) == ("left", "7", "test")
    assert left.extra == ("1999", "0.1", None, None, "c1")
    assert (right.source_id, right.split) == ("right", None)
    assert read_image(right) == b"image"


def test_names_of_numbered_classes(tmp_path, listed):
    names = tmp_path / "names.txt"
    names.write_bytes("\ufeffcat \r\ndog\u2028 house\n\n".encode())
    found = listed(
        [example({**GOOD, LABEL: label}) for label in (1, 0, 2, -2, "cow")], label_names=str(names)
    )
    classes = [found.class_name for found in found]
    assert classes == ["dog\u2028 house", "cat", "", "", "cow"]
    reasons = [rejected.reason for rejected in found[2:4]]
    assert reasons == ["feature 'image/class/text' is a number without a name"] * 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a\n\nb\n", "line 2: no name"),
        (b"a\nb\na \n", "line 3: a is already in line 1"),
        (b"\xff", "not UTF-8"),
        (None, "no such file"),
    ],
)
def test_bad_names(tmp_path, content, problem):
    data, names = tmp_path / "a.tfrecord", tmp_path / "names.txt"
    data.write_bytes(framed([example(GOOD)])[0])
    if content is not None:
        names.write_bytes(content)
    with pytest.raises(UsageError, match=f"^names of classes .*names.txt(, |: ){problem}$"):
        TFRecordSource(str(data), RecordsInput(label_names=str(names))).check()


def test_our_own_data_set(tmp_path):
    """Images keep their names, classes and splits."""
    features = features_json()["content"]["features"]
    for split in ("train", "test"):
        values = {name: "text" if "text" in feature else 1 for name, feature in features.items()}
        values |= {IMAGE: f"{split} image", LABEL: "cat", "image/source_id": f"cat/{split}.jpg"}
        data, _ = framed([encode_example(values)])
        (tmp_path / f"pets-{split}.tfrecord-00000-of-00001").write_bytes(data)
    (tmp_path / "dataset_info.json").write_text("{}")
    source = TFRecordSource(str(tmp_path), RecordsInput(source_id="image/source_id"))
    source.check()
    found = images_of(source)
    assert [(ref.source_id, ref.class_name, read_image(ref)) for ref in found] == [
        ("cat/test.jpg", "cat", b"test image"),
        ("cat/train.jpg", "cat", b"train image"),
    ]


def test_names_sort_as_records_lie(listed):
    found = listed([example({**GOOD, IMAGE: bytes(5 * 10**i)}) for i in range(7)])
    names = [ref.source_id for ref in found]
    assert names == sorted(names)
    assert [ref.offset for ref in found] == sorted(ref.offset for ref in found)


def test_floats_keep_their_32_bits(listed):
    values = [0.1, 1e10, 3.0, float("nan"), -0.0]
    found = listed([example({**GOOD, "x": value}) for value in values], columns=["x"])
    assert [np.float32(ref.extra[0]) for ref in found[:3]] == [np.float32(v) for v in values[:3]]
    assert [ref.extra[0] for ref in found] == ["0.1", "1e+10", "3.0", "nan", "-0.0"]


def test_empty_file(tmp_path, listed):
    assert listed(b"") == []
    TFRecordSource(str(tmp_path)).check()  # the next record may hold images


# What is rejected


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ({LABEL: "a"}, "no feature 'image/encoded'; there are: image/class/text"),
        ({IMAGE: b"i"}, "no feature 'image/class/text'; there are: image/encoded"),
        ({}, "no feature 'image/class/text'; there are none"),
        (GOOD | {IMAGE: []}, "feature 'image/encoded' is empty"),
        (GOOD | {IMAGE: None}, "feature 'image/encoded' is empty"),
        (GOOD | {IMAGE: [b"a", b"b"]}, "feature 'image/encoded' has several values"),
        (GOOD | {IMAGE: 7}, "feature 'image/encoded' is a number, not the bytes of an image file"),
        (GOOD | {IMAGE: [0.5, 0.5]}, "feature 'image/encoded' has several values"),
        (GOOD | {LABEL: ""}, "feature 'image/class/text' is empty"),
        (GOOD | {LABEL: " \t"}, "feature 'image/class/text' is empty"),
        (GOOD | {LABEL: []}, "feature 'image/class/text' is empty"),
        (GOOD | {LABEL: [1, 2]}, "feature 'image/class/text' has several values"),
        (GOOD | {LABEL: 1.5}, "feature 'image/class/text' is a float, not a class"),
        (GOOD | {LABEL: -1}, "feature 'image/class/text' is -1, which means no class"),
        (GOOD | {LABEL: b"\xff"}, "feature 'image/class/text' is not text in UTF-8"),
    ],
)
def test_one_bad_record_among_good_ones(listed, features, reason):
    before, rejected, after = listed([example(GOOD), example(features), example(GOOD)])
    assert isinstance(before, ImageRef)
    assert isinstance(after, ImageRef)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason
    assert rejected.source_id == f"a.tfrecord@{FRAMING_BYTES + len(example(GOOD)):012}"


def test_a_class_is_not_needed_where_none_is_asked_for(tmp_path):
    """Missing, empty and -1 mean no class; a value that is no class name is still left out."""
    labels = [{}, {LABEL: ""}, {LABEL: " "}, {LABEL: []}, {LABEL: -1}, {LABEL: "cat"}, {LABEL: 1.5}]
    records = [example({IMAGE: b"i"} | label) for label in labels]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(framed(records)[0])
    source = TFRecordSource(str(path), labelled=False)
    source.check()
    *found, bad = source.list_part(str(path))
    assert [ref.class_name for ref in found] == [""] * 5 + ["cat"]
    assert isinstance(bad, Rejected)
    path.write_bytes(framed(records[:1])[0])
    source.check()
    with pytest.raises(UsageError, match="no feature 'image/class/text' in the first records"):
        TFRecordSource(str(path)).check()


def test_rejected_keeps_name_and_class(listed):
    options = {"source_id": "id", "columns": ("x",)}
    several = one_rejected(listed([example({**GOOD, "id": "me", "x": [1, 2]})], **options))
    assert several == Rejected("me", "Zürich", "feature 'x' has several values")
    nameless = one_rejected(listed([example(GOOD)], **options))
    assert nameless == Rejected(
        "a.tfrecord@000000000000",
        "",
        "no feature 'id'; there are: image/class/text, image/encoded",
    )


def test_not_an_example(listed):
    assert one_rejected(listed([b"\xff\xff"])).reason == "not a serialized tf.train.Example"


def test_many_features_are_not_all_told(listed):
    rejected = one_rejected(listed([example({f"feature {i}": 1 for i in range(1000)})]))
    assert len(rejected.reason) < 300
    assert rejected.reason.endswith(" ...")


# Damage


DATA, OFFSETS = framed([example({**GOOD, IMAGE: bytes(50)}) for _ in range(4)])
CHECKSUM = "damaged record: the checksum of its payload is wrong"
REST = "; the rest of the file from here on is left out"


def test_damaged_payload(listed):
    for position in range(OFFSETS[1] + 12, OFFSETS[2]):
        found = listed(flipped(DATA, position))
        assert [ref.source_id for ref in found] == [f"a.tfrecord@{o:012}" for o in OFFSETS]
        assert found[1] == Rejected(f"a.tfrecord@{OFFSETS[1]:012}", "", CHECKSUM)
        assert all(isinstance(found[i], ImageRef) for i in (0, 2, 3))


def test_damaged_length(listed):
    for position in range(OFFSETS[1], OFFSETS[1] + 12):
        first, rest = listed(flipped(DATA, position))
        assert isinstance(first, ImageRef)
        assert rest.source_id == f"a.tfrecord@{OFFSETS[1]:012}"
        assert rest.reason == (
            "damaged record: the checksum of its length is wrong, or no record starts here" + REST
        )


def test_truncated(listed):
    for length in range(OFFSETS[2] + 1, OFFSETS[3], 7):
        *before, rest = listed(DATA[:length])
        assert [ref.offset for ref in before] == OFFSETS[:2]
        assert rest == Rejected(
            f"a.tfrecord@{OFFSETS[2]:012}",
            "",
            "damaged record: the file ends within it" + REST,
        )


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_compressed(tmp_path, compression):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression)) as writer:
        writer.write(example(GOOD))
    source = TFRecordSource(str(path))
    advice = "write it without compression, so that each image can be read on its own"
    problem = f".*a.tfrecord is compressed with {compression}; {advice}$"
    with pytest.raises(UsageError, match=f"^/{problem}"):
        list(source.list_part(str(path)))
    with pytest.raises(UsageError, match=f"^input tfrecord:.*: {problem}"):
        source.check()


def test_another_kind_of_file(listed):
    rejected = one_rejected(listed(b"\xff\xd8\xff\xe0 a JPEG, say" * 9))
    assert rejected.reason.endswith("or no record starts here" + REST)


GOOD_RECORD = st.builds(
    lambda image, label, x: {IMAGE: image, LABEL: label, "x": x},
    st.binary(max_size=40),
    st.one_of(st.text(min_size=1).filter(str.strip), st.integers(0, 2**63 - 1)),
    st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(width=32), st.just([])),
)
BAD_RECORD = st.one_of(
    st.builds(
        lambda record, name: {**record, name: []}, GOOD_RECORD, st.sampled_from([IMAGE, LABEL])
    ),
    st.builds(lambda record: {**record, LABEL: ["a", "b"]}, GOOD_RECORD),
    st.builds(lambda record: {IMAGE: record[IMAGE]}, GOOD_RECORD),
    st.builds(lambda record: {**record, "x": [1.0, 2.0]}, GOOD_RECORD),
)
KINDS = st.one_of(
    st.tuples(st.just("good"), GOOD_RECORD),
    st.tuples(st.just("bad"), BAD_RECORD),
    st.tuples(st.just("damaged"), GOOD_RECORD),
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(records=st.lists(KINDS, max_size=8), cut=st.integers(0, 30))
def test_every_record_is_listed_or_rejected(tmp_path_factory, records, cut):
    data, offsets = framed([example(features) for _, features in records])
    ends = [*offsets[1:], len(data)][: len(records)]
    for (kind, _), end in zip(records, ends, strict=True):
        if kind == "damaged":
            data = flipped(data, end - 5)  # the last byte of the payload
    data = data[: max(0, len(data) - cut)]
    whole = sum(end <= len(data) for end in ends)
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    path.write_bytes(data)
    found = list(TFRecordSource(str(path), RecordsInput(columns=("x",))).list_part(str(path)))
    is_cut = whole < len(records) and len(data) > offsets[whole]
    assert len(found) == whole + is_cut
    for (kind, features), result in zip(records[:whole], found, strict=False):
        if kind == "good":
            assert isinstance(result, ImageRef)
            assert read_image(result) == features[IMAGE]
            assert result.class_name == str(features[LABEL])
        else:
            assert isinstance(result, Rejected)
    names = [result.source_id for result in found]
    assert names == [f"a.tfrecord@{offset:012}" for offset in offsets[: len(found)]]


# Which files


@pytest.fixture
def files(tmp_path):
    """A folder of records and other files."""
    data, _ = framed([example(GOOD)])
    for name in ("b.tfrecord", "a-tfrecord-1", ".c.tfrecord", "d.records", "readme.txt"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "e.tfrecord").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", ["a-tfrecord-1", "b.tfrecord"]),
        ("/d.records", ["d.records"]),
        ("/*", ["a-tfrecord-1", "b.tfrecord", "d.records", "readme.txt"]),
        ("/[bd].?*rd*", ["b.tfrecord", "d.records"]),
    ],
)
def test_paths(files, path, found):
    source = TFRecordSource(f"{files}{path}")
    source.check()
    assert source.parts() == [f"{files}/{name}" for name in found]


def test_pattern_in_the_current_folder(files, monkeypatch):
    monkeypatch.chdir(files)
    (ref,) = images_of(TFRecordSource("b*"))
    assert ref.source_id == "b.tfrecord@000000000000"
    assert read_image(ref) == GOOD[IMAGE]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/none", "no such file or folder"),
        ("/none*", "no files match"),
        ("/no*/a", "wildcards are for names of files, not of folders"),
        ("/e.tfrecord", "no files in it with tfrecord in their names"),
    ],
)
def test_no_files(files, path, problem):
    with pytest.raises(UsageError) as caught:
        TFRecordSource(f"{files}{path}").check()
    assert str(caught.value) == f"input tfrecord:{files}{path}: {problem}"


def test_name_that_is_no_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xfc.tfrecord")
    with open(path, "wb") as file:
        file.write(framed([example(GOOD)])[0])
    (ref,) = images_of(TFRecordSource(str(tmp_path)))
    assert ref.source_id == "\\xfc.tfrecord@000000000000"
    assert read_image(ref) == GOOD[IMAGE]


# Options


@pytest.mark.parametrize("option", ["image", "label", "source_id", "split", "group"])
def test_features_that_are_not_there(tmp_path, option):
    (tmp_path / "a.tfrecord").write_bytes(framed([b"\xff\xff", example(GOOD)])[0])
    source = TFRecordSource(str(tmp_path), RecordsInput(**{option: "nobody"}))
    with pytest.raises(UsageError) as caught:
        source.check()
    assert str(caught.value) == (
        f"input tfrecord:{tmp_path}: no feature 'nobody' in the first records of"
        f" {tmp_path}/a.tfrecord, only image/class/text, image/encoded; see RecordsInput"
    )


def test_feature_that_comes_later(tmp_path):
    records = [example(GOOD), example({**GOOD, "x": 1})]
    (tmp_path / "a.tfrecord").write_bytes(framed(records)[0])
    source = TFRecordSource(str(tmp_path), RecordsInput(columns=["x"]))
    source.check()
    assert [ref.extra for ref in images_of(source)] == [(None,), ("1",)]


@pytest.mark.parametrize(
    ("name", "value"), [("image", ""), ("label", None), ("split", 3), ("group", "")]
)
def test_a_feature_needs_a_name(name, value):
    problem = f"^RecordsInput.{name} must be the name of a feature, not {value!r}$"
    with pytest.raises(UsageError, match=problem):
        RecordsInput(**{name: value})


@pytest.mark.parametrize("columns", ["year", [1], ["a", "a"]])
def test_columns_need_different_names(columns):
    with pytest.raises(UsageError) as caught:
        RecordsInput(columns=columns)
    problem = f"RecordsInput.columns must be different names of features, not {columns!r}"
    assert str(caught.value) == problem


def test_group_is_a_column_once():
    assert RecordsInput(columns=["a", "b"], group="a").columns == ("a", "b")
    assert RecordsInput(columns=["a"], group="b").columns == ("a", "b")
    assert dataclasses.replace(RecordsInput(group="b")).columns == ("b",)


# Reading one image


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: flipped(data, OFFSETS[1] + 20), CHECKSUM),
        (lambda data: data[: OFFSETS[1] + 20], "damaged record: the file ends within it"),
        (lambda data: data[: OFFSETS[1]], "damaged record: the file ends before it"),
        (
            lambda data: bytes(len(data)),
            "damaged record: the checksum of its length is wrong, or no record starts here",
        ),
        (
            lambda data: framed([example({**GOOD, IMAGE: os.urandom(50)}) for _ in range(4)])[0],
            "the record has changed since it was listed",
        ),
        (
            lambda data: framed([data[12 : OFFSETS[1] - 4], example({LABEL: "a"})])[0],
            "no feature 'image/encoded'; there are: image/class/text",
        ),
    ],
)
def test_changed_after_it_was_listed(tmp_path, listed, change, reason):
    ref = listed(DATA)[1]
    (tmp_path / "a.tfrecord").write_bytes(change(DATA))
    with pytest.raises(BadImage) as caught:
        read_image(ref)
    assert caught.value.reason == reason


def test_file_that_has_vanished(tmp_path, listed):
    ref = listed(DATA)[1]
    (tmp_path / "a.tfrecord").unlink()
    with pytest.raises(FileNotFoundError):
        read_image(ref)
