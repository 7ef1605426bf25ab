"""Other readers open the data set. The code of docs/data-format.md runs here unchanged."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.fixtures.written import DUPLICATES, INDEX_COLUMNS, SHARDS, write_data_set
from tripletmill.__main__ import main
from tripletmill.formats.index import load_index, load_info
from tripletmill.formats.records import decode_example, read_records

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/data-format.md").read_text(encoding="utf-8")
TF_DATA, TFDS, ONE_IMAGE = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that contains data/photos, as in the documentation."""
    folder = tmp_path_factory.mktemp("readers")
    (folder / "data").mkdir()
    write_data_set(folder / "data/photos")
    return folder


def ours(data_set: Path, split: str) -> list[dict]:
    """The features of a split's images, read by this project."""
    found = []
    for shard in load_index(str(data_set), split).shards:
        with open(shard, "rb") as file:
            found += [decode_example(payload) for _, payload in read_records(file)]
    return found


def test_tf_data(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(TF_DATA, names)
    images = list(names["dataset"])
    expected = ours(folder / "data/photos", "train")
    assert len(images) == len(expected) == 11
    for (image, label), features in zip(images, expected, strict=True):
        assert label == features["image/class/label"]
        np.testing.assert_array_equal(image, tf.io.decode_jpeg(features["image/encoded"]))


@pytest.mark.parametrize("split", SHARDS)
def test_every_feature_in_tf_data(folder, split):
    types = {int: tf.int64, bytes: tf.string}
    expected = ours(folder / "data/photos", split)
    spec = {k: tf.io.FixedLenFeature([], types[type(v)]) for k, v in expected[0].items()}
    files = load_index(str(folder / "data/photos"), split).shards
    dataset = tf.data.TFRecordDataset(files).map(lambda r: tf.io.parse_single_example(r, spec))
    assert list(dataset.as_numpy_iterator()) == expected


def test_tfds(folder, tmp_path):
    """One data set is written by hand and has an empty shard; the other is from the pipeline."""
    from tests.fixtures.datasets import small_data_set  # imports Beam

    data_sets = [folder / "data/photos", small_data_set(tmp_path, classes=4, images=3)]
    code = f"""
import hashlib, json, sys
{TFDS}
first = next(iter(dataset))["image/encoded"]
assert first.dtype == "uint8" and len(first.shape) == 3
for data_set in sys.argv[1:]:
    builder = tfds.builder_from_directory(data_set)
    found = {{}}
    for split in builder.info.splits.values():
        images = []
        for image in tfds.as_numpy(builder.as_dataset(split=split.name)):
            pixels = image.pop("image/encoded")
            image |= {{"pixels": pixels.tobytes(), "shape": str(pixels.shape).encode()}}
            for name, value in image.items():
                image[name] = value.hex() if isinstance(value, bytes) else int(value)
            images.append(image)
        found[split.name] = split.num_examples, images
    print(json.dumps(found))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path / "none")}
    command = [sys.executable, "-c", code, *map(str, data_sets)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for data_set, line in zip(data_sets, done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        assert found.keys() == load_info(str(data_set)).num_images.keys()
        for split, (num_examples, images) in found.items():
            expected = []
            for features in ours(data_set, split):
                pixels = tf.io.decode_image(features.pop("image/encoded"), channels=3).numpy()
                shape = str(pixels.shape).encode()
                values = {**features, "pixels": pixels.tobytes(), "shape": shape}
                hexed = {k: v.hex() if isinstance(v, bytes) else v for k, v in values.items()}
                expected.append(hexed)
            assert num_examples == len(expected) > 0
            # TFDS reads several shards at once, so the order may differ.
            assert sorted(images, key=itemgetter("image/source_id")) == sorted(
                expected, key=itemgetter("image/source_id")
            )


def test_one_image(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(ONE_IMAGE, names)
    expected = ours(folder / "data/photos", "train")[7]
    assert names["features"] == expected
    assert names["row"]["source_id"].encode() == expected["image/source_id"]
    with names["image"] as image, Image.open(io.BytesIO(expected["image/encoded"])) as other:
        assert image == other
        assert (image.height, image.width) == (names["row"]["height"], names["row"]["width"])


def test_commands(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    [block] = re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL)
    for line in block.splitlines():
        python, option, module, *arguments = shlex.split(line)
        assert (python, option, module) == ("python", "-m", "tripletmill")
        assert main(arguments) == 0
    assert capsys.readouterr().out.endswith("all right\n")


def documented(heading: str) -> set[str]:
    """The names in the first column of the table below a heading."""
    table = re.search(rf"## {heading}\n.*?\n\|[-|]+\|\n(.*?)\n\n", DOCS, re.DOTALL)
    assert table
    cells = [line.split("|")[1] for line in table[1].splitlines()]
    return {name for cell in cells for name in re.findall("`(.*?)`", cell)}


def test_documented_names(folder):
    data = folder / "data/photos"
    assert documented("Records") == {*ours(folder / "data/photos", "train")[0]}
    assert documented("Index") == {*INDEX_COLUMNS, "x_..."}
    assert documented("Classes") == {"label", "name", "split", "count"}
    content = json.loads((data / "dataset_info.json").read_text())
    extra = json.loads(content["releaseNotes"]["tripletmill"])
    assert documented("The JSON files") == {*extra}
    plain = {re.sub(r"photos-[a-z]+\.tfrecord.*", "shard", path.name) for path in data.iterdir()}
    plain = {re.sub(r"photos-[a-z]+\.index", "index", name) for name in plain}
    files = {re.sub(r"<name>-<split>\.tfrecord.*", "shard", f) for f in documented_files()}
    assert {re.sub(r"<name>-<split>\.index", "index", name) for name in files} == plain
    for key in (*DUPLICATES[0], *DUPLICATES[0]["images"][0]):
        assert f'"{key}"' in DOCS


def documented_files() -> set[str]:
    table = DOCS[DOCS.index("| file |") :].split("\n\n")[0]
    return {re.findall("`(.*?)`", line)[0] for line in table.splitlines()[2:]}
