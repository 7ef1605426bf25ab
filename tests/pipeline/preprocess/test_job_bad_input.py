"""Each bad or odd file ends in the data set or in rejected.jsonl; none vanishes."""

import collections
import dataclasses
import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fixtures import corpus, jobs
from tests.fixtures.corpus import Kept, LeftOut
from tests.fixtures.images import corners, encode, rotated
from tripletmill.errors import UsageError
from tripletmill.formats.index import load_index, load_info
from tripletmill.formats.records import decode_example, read_record

# tripletmill.images sets this filter when it is imported; pytest puts its own filters in front of
# it.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")


@dataclasses.dataclass(frozen=True)
class Alternating:
    """Puts every second class into `test`.

    The rule is asked when all files are listed and no file has been read for good, so `disturb`
    runs here.
    """

    disturbed: str = ""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        if self.disturbed:
            corpus.disturb(Path(self.disturbed))
        return {name: ("train", "test")[i % 2] for i, name in enumerate(names)}


def run(input: Path, output: Path, **arguments: Any) -> None:
    jobs.run(input, output, **{"splits": Alternating(), "max_rejected_share": 1.0, **arguments})


@dataclasses.dataclass(frozen=True)
class Found:
    """What the index says of an image, and the image's record."""

    split: str
    label: int
    class_name: str
    source_sha256: bytes
    record: dict[str, Any]


def kept(data_set: Path) -> dict[str, Found]:
    """All images of the data set, by source_id."""
    found: dict[str, Found] = {}
    for split in load_info(str(data_set)).num_images:
        index = load_index(str(data_set), split)
        names = index.class_names()
        source_ids, hashes = (index.column(c).to_pylist() for c in ("source_id", "source_sha256"))
        for i, source_id in enumerate(source_ids):
            assert source_id not in found
            with open(index.shards[index.shard[i]], "rb") as file:
                record = decode_example(read_record(file, int(index.offset[i])))
            label = int(index.label[i])
            found[source_id] = Found(split, label, names[label], hashes[i], record)
    return found


def rejected(data_set: Path) -> dict[str, dict[str, str]]:
    """All rows of rejected.jsonl, by source_id."""
    # str.splitlines would also split at some characters that are part of names.
    lines = (data_set / "rejected.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    rows = [json.loads(line) for line in lines]
    found = {row["source_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@dataclasses.dataclass(frozen=True)
class Made:
    """The corpus before the job, and what the job made from it."""

    input: Path
    output: Path
    expected: dict[str, Kept | LeftOut]
    files: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("bad")
    expected = corpus.build(folder / "images")
    files = corpus.on_disk(folder / "images")
    # The shards are small, so some have no good image.
    run(
        folder / "images",
        folder / "data",
        short_side=corpus.SHORT_SIDE,
        background=corpus.BACKGROUND,
        images_per_shard=7,
        splits=Alternating(disturbed=str(folder / "images")),
    )
    return Made(folder / "images", folder / "data", expected, files)


def test_every_file_comes_out_as_it_must(made):
    images, lines = kept(made.output), rejected(made.output)
    problems = {}
    for name, expected in made.expected.items():
        try:
            if isinstance(expected, Kept):
                assert name not in lines, lines[name]
                check_kept(images[name], name, expected, made.input)
            else:
                assert name not in images, "in the data set"
                assert re.match(expected.reason, lines[name]["reason"]), lines[name]
                assert "\n" not in lines[name]["reason"]
                assert lines[name]["class"] == expected.class_name
        except (AssertionError, KeyError) as error:
            problems[name] = repr(error)
    assert not problems, "\n".join(f"{name!r}: {what}" for name, what in problems.items())
    assert {*images, *lines} == {*made.expected}


def check_kept(image: Found, name: str, expected: Kept, input: Path) -> None:
    record = image.record
    assert record["image/source_id"].decode() == name
    assert record["image/class/text"].decode() == image.class_name == name.split("/")[0]
    assert record["image/class/label"] == image.label
    # The hash is that of the bytes that were read, also where the file has changed since it was
    # listed.
    assert image.source_sha256 == hashlib.sha256((input / name).read_bytes()).digest()
    jpeg = record["image/encoded"]
    assert record["image/key/sha256"] == hashlib.sha256(jpeg).digest()
    assert (record["image/width"], record["image/height"]) == expected.size
    with Image.open(io.BytesIO(jpeg)) as decoded:
        assert (decoded.format, decoded.mode, decoded.size) == ("JPEG", "RGB", expected.size)
        assert not decoded.getexif()
    np.testing.assert_allclose(corners(jpeg), expected.colours, atol=8)


def test_nothing_is_lost_without_a_line(made):
    images, lines = kept(made.output), rejected(made.output)
    assert not {*images} & {*lines}
    assert load_info(str(made.output)).num_rejected == len(lines)
    accounted = {*images, *lines}
    for file in made.files:
        # A folder that is left out as a whole stands for all its files.
        names = {file, *(str(folder) for folder in Path(file).parents)}
        assert len(names & accounted) == 1, file
    for name in accounted - {*made.files}:
        assert lines[name]["reason"].startswith(("folder ", "hidden folder", "class folder "))


def test_class_names_are_kept_apart(made):
    table = pq.read_table(made.output / "classes.parquet").to_pylist()
    counts = collections.Counter(
        name.split("/")[0] for name, what in made.expected.items() if isinstance(what, Kept)
    )
    found = {row["name"]: row["count"] for row in table if row["count"]}
    assert found == counts
    assert {*corpus.CLASS_NAMES} <= {*found}
    # In the other classes every image is bad.
    assert {row["name"] for row in table} - {*found} <= {"only bad"}
    assert [row["name"] for row in table] == sorted(row["name"] for row in table)
    assert [row["label"] for row in table] == [*range(len(table))]
    assert sum(row["split"] == "train" for row in table) == -(-len(table) // 2)


def test_tensorflow_reads_it_back(made):
    import tensorflow as tf

    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        "image/class/text": tf.io.FixedLenFeature([], tf.string),
        "image/source_id": tf.io.FixedLenFeature([], tf.string),
    }
    table = pq.read_table(made.output / "classes.parquet").to_pylist()
    names = {row["label"]: row["name"] for row in table}
    shards = sorted(map(str, made.output.glob("toy-*.tfrecord-*")))
    assert any(os.path.getsize(shard) == 0 for shard in shards)
    found = {}
    for record in tf.data.TFRecordDataset(shards).as_numpy_iterator():
        row = tf.io.parse_single_example(record, features)
        label, text = int(row["image/class/label"]), row["image/class/text"].numpy().decode()
        assert names[label] == text
        shape = tf.io.decode_jpeg(row["image/encoded"]).shape
        found[row["image/source_id"].numpy().decode()] = (shape[1], shape[0])
    expected = made.expected.items()
    assert found == {name: what.size for name, what in expected if isinstance(what, Kept)}


# This runs in a process of its own, because its warnings are not ours.
READ_WITH_TFDS = """
import json, sys
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory(sys.argv[1])
rows = {}
for split, info in builder.info.splits.items():
    rows[split] = [
        [
            int(example["image/class/label"]),
            example["image/class/text"].decode(),
            example["image/source_id"].decode(),
            example["image/encoded"].shape[:2],
        ]
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    ]
    assert info.num_examples == len(rows[split]), (info, len(rows[split]))
classes = builder.info.features["image/class/label"]
print(json.dumps([rows, getattr(classes, "num_classes", None)]))
"""


@pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow_datasets"), reason="needs tensorflow_datasets"
)
def test_tensorflow_datasets_opens_it(made):
    command = [sys.executable, "-c", READ_WITH_TFDS, str(made.output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    splits, num_classes = json.loads(done.stdout.splitlines()[-1])
    images = kept(made.output)
    found = {
        source_id: (split, label, name, shape)
        for split, rows in splits.items()
        for label, name, source_id, shape in rows
    }
    assert found == {
        source_id: (
            image.split,
            image.label,
            image.class_name,
            [image.record["image/height"], image.record["image/width"]],
        )
        for source_id, image in images.items()
    }
    # The file of class names has one name a line, and some names contain line breaks.
    assert num_classes in (None, pq.read_table(made.output / "classes.parquet").num_rows)


def test_what_may_not_be_read(tmp_path):
    input = tmp_path / "images"
    for name in ("a/1", "a/closed.png", "a/closed/2", "a/names only/3", "b/1", "closed/1"):
        (input / name).parent.mkdir(parents=True, exist_ok=True)
        (input / name).write_bytes(encode("RGB"))
    modes = {"a/closed.png": 0, "a/closed": 0, "a/names only": 0o400, "closed": 0}
    try:
        for name, mode in modes.items():
            (input / name).chmod(mode)
        if os.access(input / "a/closed.png", os.R_OK):
            pytest.skip("this user, root as a rule, may read every file")
        run(input, tmp_path / "data", short_side=16)
    finally:
        for name in modes:
            (input / name).chmod(0o700)
    assert sorted(kept(tmp_path / "data")) == ["a/1", "b/1"]
    lines = rejected(tmp_path / "data")
    assert {*lines} == {"a/closed", "a/closed.png", "a/names only/3", "closed"}
    for name, row in lines.items():
        assert row["class"] == name.split("/")[0]
        assert row["reason"] == "cannot be read: Permission denied"


@pytest.mark.parametrize("function", ["stat", "scandir"])
def test_a_disk_in_trouble_leaves_nothing_out(tmp_path, monkeypatch, function):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        (tmp_path / "images" / name).write_bytes(encode("RGB"))
    working = getattr(os, function)

    def failing(path, *arguments, **options):
        if path in (f"{tmp_path}/images/a/1.png", f"{tmp_path}/images/a"):
            raise OSError(errno.EIO, "Input/output error", path)
        return working(path, *arguments, **options)

    monkeypatch.setattr(os, function, failing)
    with pytest.raises(UsageError, match=r"images/a.*: Input/output error"):
        run(tmp_path / "images", tmp_path / "data", short_side=16)
    assert not (tmp_path / "data/rejected.jsonl").exists()


def test_too_many_bad_images_are_one_line(tmp_path):
    for name in ("a/1.png", "a/new\nline.png", "b/1.png", "b/2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(encode("RGB"))
    (tmp_path / "images/b/cut\n.png").write_bytes(encode("RGB")[:100])
    (tmp_path / "images/b/empty.png").write_bytes(b"")
    flags = ["--name=toy", "--gin_param=preprocess.splits = @SortedSplits()"]
    paths = [f"--input={tmp_path / 'images'}", f"--output={tmp_path / 'data'}"]
    done = jobs.command(*flags, *paths, "--gin_param=preprocess.short_side = 16")
    assert done.returncode == 2
    assert done.stdout == ""
    *progress, line = done.stderr.splitlines()
    assert all(re.match("listing |preprocessed ", text) for text in progress), progress
    assert line.startswith("error: 2 of 6 images rejected (at most 5% may be): ")
    assert "1 x empty file" in line
    assert line.endswith(f"see {tmp_path}/data/rejected.jsonl")
    assert {*rejected(tmp_path / "data")} == {"b/cut\n.png", "b/empty.png"}
    assert not (tmp_path / "data/dataset_info.json").exists()


VALID = [
    encode("RGB", format="JPEG"),
    encode("RGB", format="JPEG", progressive=True),
    encode("CMYK", format="JPEG"),
    encode("RGBA"),
    encode("P", transparency=3),
    encode("I;16"),
    encode("P", format="GIF"),
    encode("RGB", format="WEBP"),
    encode("RGB", format="BMP"),
    rotated(6, "TIFF"),
]


@st.composite
def broken_files(draw) -> bytes:
    """A damaged file.

    It is a valid image with some flipped bits, only the start of an image, the start and then
    noise, or only noise.
    """
    data = bytearray(draw(st.sampled_from(VALID)))
    noise = st.binary(min_size=1, max_size=100)
    match draw(st.sampled_from(["flips"] * 5 + ["start", "start and noise", "noise"])):
        case "start":
            return bytes(data[: draw(st.integers(0, len(data) - 1))])
        case "start and noise":
            return bytes(data[: draw(st.integers(2, len(data) - 1))]) + draw(noise)
        case "noise":
            return draw(noise)
    # Damage to the header, after its first bytes, has the most varied effects.
    head, anywhere = st.integers(8 * 4, 8 * 60), st.integers(8 * 4, 8 * len(data) - 1)
    for bit in draw(st.lists(st.one_of(head, anywhere, anywhere), min_size=1, max_size=3)):
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


# Examples are not shrunk: each one is a whole job, and the assertion already names the file.
@settings(max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(files=st.lists(broken_files(), min_size=40, max_size=60))
def test_no_damage_stops_the_job_or_loses_a_file(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("damage")
    names = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(len(files))]
    sound = ["a/sound.png", "b/sound.png"]  # every split needs an image
    for name, data in zip([*names, *sound], [*files, encode("RGB"), encode("RGB")], strict=True):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(data)
    run(folder / "images", folder / "data", short_side=16)
    images, lines = kept(folder / "data"), rejected(folder / "data")
    assert sorted([*images, *lines]) == sorted([*names, *sound])
    assert {*sound} <= {*images}
    assert all(re.fullmatch(".{5,150}", row["reason"]) for row in lines.values())
    for image in images.values():
        with Image.open(io.BytesIO(image.record["image/encoded"])) as decoded:
            assert min(decoded.size) == 16
            decoded.load()
