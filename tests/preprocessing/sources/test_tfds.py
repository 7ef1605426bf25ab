"""Data sets that TensorFlow Datasets has prepared, compared with what it reads from them."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.sources.tfds import TfdsInput, TfdsSource
from preprocessing.sources.tfrecords import read_image
from tests.fixtures.project import ROOT
from tripletmill.errors import UsageError

NAMES = ["cat", ' a/b, "ü" \u2028 c: 100% ', "dog"]


# This part runs in a process of its own: python -m tests.preprocessing.sources.test_tfds FOLDER


def jpeg(number: int) -> bytes:
    """A small image that is different for every number."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def prepare(folder: Path) -> None:
    """Prepares many kinds of data sets in FOLDER, and writes what TFDS reads to expected.json."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    features = tfds.features
    expected: dict[str, Any] = {}

    class DataSet(tfds.core.GeneratorBasedBuilder):
        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=self.structure)

        def _split_generators(self, _):
            return {split: enumerate(examples) for split, examples in self.splits.items()}

        def _generate_examples(self):
            """Is not called, because _split_generators has the examples."""

    def store(name, structure, splits, *, shards=1, version="1.0.0", config=None):
        content = {
            "name": name,
            "VERSION": tfds.core.Version(version),
            "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
            "structure": features.FeaturesDict(structure),
            "splits": splits,
        }
        with registered.skip_registration():  # some of the names are equal
            builder = type("DataSet", (DataSet,), content)(data_dir=folder)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=shards)
        )
        expected[os.path.relpath(builder.data_dir, folder)] = read(builder.data_dir)

    def read(path):
        builder = tfds.builder_from_directory(path)
        return {
            split: [
                told(builder.info.features, example)
                for example in builder.as_dataset(
                    split=split,
                    read_config=tfds.ReadConfig(add_tfds_id=True),
                    decoders=undecoded(builder.info.features),
                ).as_numpy_iterator()
            ]
            for split in builder.info.splits
        }

    def undecoded(structure):
        return {
            name: tfds.decode.SkipDecoding()
            if isinstance(feature, features.Image)
            else undecoded(feature)
            for name, feature in structure.items()
            if isinstance(feature, features.Image | features.FeaturesDict)
        }

    def told(structure, example, path=""):
        found: dict[str, str | None] = {}
        for name, value in example.items():
            feature = dict(structure.items()).get(name)
            if isinstance(feature, features.FeaturesDict):
                found |= told(feature, value, f"{path}{name}/")
            elif isinstance(feature, features.Image):
                found[path + name] = hashlib.md5(value).hexdigest()
            elif isinstance(feature, features.ClassLabel):
                found[path + name] = feature.int2str(value) if value >= 0 else None
            elif not isinstance(feature, features.Sequence):
                found[path + name] = value.decode() if isinstance(value, bytes) else str(value)
        return found

    def pet(i):
        return {
            "image": io.BytesIO(jpeg(i)),
            "label": i % 3,
            "year": 1990 + i,
            "weight": i / 10,
            "owner": f"Zoë {i % 2}",
            "box": features.BBox(0.0, 0.0, 0.5, i / 100),
            "boxes": [],
        }

    pets = {
        "image": features.Image(),
        "label": features.ClassLabel(names=NAMES),
        "year": np.int64,
        "weight": np.float32,
        "owner": features.Text(),
        "box": features.BBoxFeature(),
        "boxes": features.Sequence(features.BBoxFeature()),
    }
    splits = {"train": [pet(i) for i in range(20)], "test": [pet(i) for i in range(20, 27)]}
    store("pets", pets, splits, shards=3, version="1.10.0")
    store("pets", pets, {"train": [pet(99)]}, version="1.9.0")

    nested = {
        "photo": {"image": features.Image(), "taken/by": features.Text()},
        "class/of": {"species": features.ClassLabel(names=["x", "y"]), "id": np.int64},
        "parts": features.Sequence({"image": features.Image(), "kind": features.Text()}),
    }
    plants = [
        {
            "photo": {"image": io.BytesIO(jpeg(i)), "taken/by": "me"},
            "class/of": {"species": i % 2, "id": 7},
            "parts": [{"image": io.BytesIO(jpeg(50 + j)), "kind": "leaf"} for j in range(2)],
        }
        for i in range(4)
    ]
    store("plants", nested, {"everything": plants})

    pairs = {
        "left": features.Image(),
        "right": features.Image(),
        "mask": features.LabeledImage(labels=2),
        "coarse": features.ClassLabel(num_classes=2),
        "fine": features.ClassLabel(num_classes=4),
    }
    mask = np.zeros((8, 8, 1), np.uint8)
    examples = [
        {
            "left": io.BytesIO(jpeg(i)),
            "right": io.BytesIO(jpeg(100 + i)),
            "mask": mask,
            "coarse": 0,
            "fine": i - 1,
        }
        for i in range(4)
    ]
    store("pairs", pairs, {"train": examples})

    texts = {"image": features.Image(), "name": features.Text()}
    for config in ("small", "large"):
        named = [{"image": io.BytesIO(jpeg(i)), "name": f"{config} {i}"} for i in range(2)]
        store("sized", texts, {"train": named}, config=config)

    broken = {"image": features.Image(), "label": features.ClassLabel(names=["a\nb", "c"])}
    store("broken", broken, {"train": [{"image": io.BytesIO(jpeg(1)), "label": 1}]})

    (folder / "expected.json").write_text(json.dumps(expected))


# The tests


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of data sets, and what TFDS reads from each: {folder: {split: [features]}}."""
    folder = tmp_path_factory.mktemp("tfds")
    command = [sys.executable, "-m", "tests.preprocessing.sources.test_tfds", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "expected.json").read_text())


def refuses(folder: Path, name: str, problem: str, **options: Any) -> None:
    """Checks the message about a data set that cannot be read."""
    with pytest.raises(UsageError, match=f"^input tfds:{name}: {problem}$"):
        TfdsSource(name, str(folder), TfdsInput(**options)).check()


def listed(source: TfdsSource) -> list[ImageRef | Rejected]:
    source.check()
    return [found for part in source.parts() for found in source.list_part(part)]


def images_of(source: TfdsSource) -> list[ImageRef]:
    found = listed(source)
    assert all(isinstance(ref, ImageRef) for ref in found)
    return [ref for ref in found if isinstance(ref, ImageRef)]


def positions(refs) -> list[str]:
    """FILE__NUMBER, the name that TFDS gives an example."""
    files: dict[str, list[int]] = {}
    for ref in refs:
        files.setdefault(os.path.basename(ref.path), []).append(ref.offset)
    return [
        f"{os.path.basename(ref.path)}__{files[os.path.basename(ref.path)].index(ref.offset)}"
        for ref in refs
    ]


@pytest.mark.parametrize(
    ("name", "folder", "options", "image", "label"),
    [
        ("pets", "pets/1.10.0", {}, "image", "label"),
        ("pets:1.9.0", "pets/1.9.0", {}, "image", "label"),
        ("plants", "plants/1.0.0", {}, "photo/image", "class/of/species"),
        ("plants", "plants/1.0.0", {"label": "class/of/id"}, "photo/image", "class/of/id"),
        ("sized/large", "sized/large/1.0.0", {}, "image", "name"),
        ("sized/small:1.0.0", "sized/small/1.0.0", {}, "image", "name"),
    ],
)
def test_same_as_tfds(prepared, name, folder, options, image, label):
    tfds_dir, expected = prepared
    refs = images_of(TfdsSource(name, str(tfds_dir), TfdsInput(**options, use_splits=True)))
    found = {
        position: (ref.split, ref.md5, ref.class_name)
        for position, ref in zip(positions(refs), refs, strict=True)
    }
    assert found == {
        example["tfds_id"]: (split, example[image], example[label])
        for split, examples in expected[folder].items()
        for example in examples
    }
    assert len({ref.source_id for ref in refs}) == len(refs) == len(found)
    assert all(hashlib.md5(read_image(ref)).hexdigest() == ref.md5 for ref in refs)


def test_expected_is_not_empty(prepared):
    _, expected = prepared
    examples = expected["pets/1.10.0"]
    assert {split: len(found) for split, found in examples.items()} == {"train": 20, "test": 7}
    assert {example["label"] for example in examples["train"]} == {name.strip() for name in NAMES}
    assert len({example["tfds_id"].split("__")[0] for example in examples["train"]}) == 3


def test_columns_and_splits(prepared):
    tfds_dir, expected = prepared
    options = TfdsInput(columns=["year", "weight"], group="owner")
    source = TfdsSource("pets", str(tfds_dir), options)
    assert (source.columns, source.group) == (("year", "weight", "owner"), "owner")
    refs = images_of(source)
    assert {ref.split for ref in refs} == {None}
    assert {p: ref.extra for p, ref in zip(positions(refs), refs, strict=True)} == {
        example["tfds_id"]: (example["year"], example["weight"], example["owner"])
        for split in ("train", "test")
        for example in expected["pets/1.10.0"][split]
    }


def test_source_ids(prepared):
    tfds_dir, _ = prepared
    (ref,) = images_of(TfdsSource("pets:1.9.0", str(tfds_dir)))
    assert ref.source_id == "pets-train.tfrecord-00000-of-00001@000000000000"


def test_two_images_and_two_labels(prepared):
    tfds_dir, expected = prepared
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "several features may be the image: set TfdsInput.image to one of left, right"),
        (
            {"image": "left"},
            "several features may be the label: set TfdsInput.label to one of coarse, fine",
        ),
        (
            {"image": "top", "label": "fine"},
            "no feature 'top' of one value, only coarse, fine, left, mask, right; see TfdsInput",
        ),
    ]
    for options, problem in cases:
        refuses(tfds_dir, "pairs", problem, **options)
    # In TFDS, class -1 means that there is no class.
    found = listed(TfdsSource("pairs", str(tfds_dir), TfdsInput(image="right", label="fine")))
    refs = [ref for ref in found if isinstance(ref, ImageRef)]
    examples = expected["pairs/1.0.0"]["train"]
    assert {(ref.md5, ref.class_name) for ref in refs} == {
        (example["right"], example["fine"]) for example in examples if example["fine"] is not None
    }
    assert len(refs) == 3
    (rejected,) = (found for found in found if isinstance(found, Rejected))
    assert rejected.reason == "feature 'fine' is -1, which means no class"
    options = TfdsInput(image="right", label="fine")
    found = listed(TfdsSource("pairs", str(tfds_dir), options, labelled=False))
    assert {ref.class_name for ref in found} == {"", *(ref.class_name for ref in refs)}
    assert len(found) == 4


@pytest.mark.parametrize("column", ["box", "boxes", "none"])
def test_columns_of_several_values(prepared, column):
    tfds_dir, _ = prepared
    problem = f"no feature '{column}' of one value, only image, label, owner.*"
    refuses(tfds_dir, "pets", problem, columns=[column])


def test_class_name_with_a_line_break(prepared):
    tfds_dir, _ = prepared
    problem = ".*/broken/1.0.0/label.labels.txt has 3 names for the 2 classes of 'label'; a name"
    refuses(tfds_dir, "broken", f"{problem}.*")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("birds", "no such data set in .*, which holds broken, downloads, pairs, .*, sized"),
        ("sized", "choose one of its configurations with tfds:sized/CONFIG: large, small"),
        ("sized/huge", "no such configuration, only large, small"),
        ("pets/huge", "no such configuration, only none"),
        ("pets:1.0.0", "no such version in .*/pets, only 1.9.0, 1.10.0"),
        ("sized/small:2.0.0", "no such version in .*/sized/small, only 1.0.0"),
        ("pets:1", "expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0"),
        ("../pets", "expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0"),
        ("", "expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0"),
    ],
)
def test_no_such_data_set(prepared, name, problem):
    tfds_dir, _ = prepared
    refuses(tfds_dir, name, problem)


def test_no_such_folder(tmp_path):
    refuses(tmp_path / "none", "pets", "no such data set in .*/none, which holds nothing")


def test_parts_cross_processes(prepared):
    source = TfdsSource("pets", str(prepared[0]), TfdsInput(group="owner"))
    assert pickle.loads(pickle.dumps(source)) == source
    assert pickle.loads(pickle.dumps(source.parts())) == source.parts()


# Incomplete data sets


@pytest.fixture
def pets(prepared, tmp_path):
    """A copy of a data set that a test may damage."""
    shutil.copytree(prepared[0] / "pets" / "1.10.0", tmp_path / "pets" / "1.10.0")
    return tmp_path / "pets" / "1.10.0"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_unfinished_version_is_passed_over(pets):
    pets.rename(pets.with_name("incomplete.ABC123_1.10.0"))
    refuses(pets.parents[1], "pets", "no such data set.*")


def test_other_formats(pets):
    change(pets / "dataset_info.json", fileFormat="array_record")
    refuses(pets.parents[1], "pets", "its files are array_record; only tfrecord can be read")


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_description_is_missing_or_wrong(pets, name):
    wrong = b'{"pythonClassName": 3, "splits": [{"shardLengths": 3}]}'
    for content in (b"{", b"\xff", b"[]", wrong):
        (pets / name).write_bytes(content)
        refuses(pets.parents[1], "pets", f".*/{name} is not in the form that.*")
    (pets / name).unlink()
    refuses(pets.parents[1], "pets", f"no {name} in .*; prepare it with.*")


def test_features_in_a_former_form(pets):
    image = {"type": "tensorflow_datasets.core.features.image_feature.Image", "content": {}}
    content = {"type": "FeaturesDict", "content": {"image": image}}
    (pets / "features.json").write_text(json.dumps(content))
    problem = (
        r".*not in the form that TFDS writes today \(KeyError\('featuresDict'\)\); prepare the.*"
    )
    refuses(pets.parents[1], "pets", problem)


def test_no_files(pets):
    change(pets / "dataset_info.json", splits=[])
    refuses(pets.parents[1], "pets", "it has no files in any split, says .*json")


def test_missing_file(pets):
    (pets / "pets-test.tfrecord-00001-of-00003").unlink()
    problem = "1 of its files are missing: .*/pets-test.tfrecord-00001-of-00003"
    refuses(pets.parents[1], "pets", problem)


def test_records_that_are_missing(pets):
    source = TfdsSource("pets", str(pets.parents[1]))
    last = images_of(source)[-1]
    with open(last.path, "r+b") as file:
        file.truncate(last.offset)
    *_, rejected = listed(source)
    assert rejected == Rejected(
        os.path.basename(last.path), "", "fewer records than dataset_info.json says"
    )


def test_names_of_files(pets):
    info = json.loads((pets / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = "{SPLIT}/{SHARD_INDEX}_{NUM_SHARDS}.{FILEFORMAT}"
    source = TfdsSource("pets", str(pets.parents[1]))
    before = images_of(source)
    change(pets / "dataset_info.json", splits=info["splits"])
    for split in ("train", "test"):
        (pets / split).mkdir()
        for i in range(3):
            path = pets / f"pets-{split}.tfrecord-0000{i}-of-00003"
            path.rename(pets / split / f"0000{i}_00003.tfrecord")
    refs = images_of(source)
    assert [ref.md5 for ref in refs] == [ref.md5 for ref in before]
    assert refs[0].source_id == "train/00000_00003.tfrecord@000000000000"


def test_image_of_floats(pets):
    features = json.loads((pets / "features.json").read_text())
    features["featuresDict"]["features"]["image"]["image"]["dtype"] = "float32"
    (pets / "features.json").write_text(json.dumps(features))
    with pytest.raises(UsageError, match=r"'image' is an image of floats, which cannot be read$"):
        TfdsSource("pets", str(pets.parents[1])).check()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"image": ""}, "TfdsInput.image must be the name of a feature, not ''"),
        ({"group": 3}, "TfdsInput.group must be the name of a feature, not 3"),
        (
            {"columns": "year"},
            "TfdsInput.columns must be different names of features, not 'year'",
        ),
    ],
)
def test_wrong_options(options, problem):
    with pytest.raises(UsageError, match=f"^{problem}$"):
        TfdsInput(**options)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
