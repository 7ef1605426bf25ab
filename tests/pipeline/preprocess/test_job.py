"""The whole Beam job: what it writes, and what it refuses."""

import errno
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from preprocessing.sources.tfrecords import RecordsInput
from preprocessing.splits import HashSplits, QueryGallery, SortedSplits
from preprocessing.writing import shards
from tests.fixtures.folders import class_folder
from tests.fixtures.images import encode
from tests.fixtures.jobs import SETTINGS, command, content, run
from tripletmill.errors import UsageError
from tripletmill.formats.index import load_index, load_info
from tripletmill.formats.records import decode_example, read_record


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = class_folder(tmp_path_factory.mktemp("input") / "images", classes=6, images=5)
    (root / "class_00" / "broken.jpg").write_bytes(b"no image")
    (root / "class_01" / ".hidden").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def data_set(images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("output") / "data"
    run(images, output)
    return output


def test_files(data_set):
    assert sorted(content(data_set)) == [
        "classes.parquet",
        "dataset_info.json",
        "duplicates.jsonl",
        "features.json",
        "rejected.jsonl",
        "toy-test.index.parquet",
        "toy-test.tfrecord-00000-of-00002",
        "toy-test.tfrecord-00001-of-00002",
        "toy-train.index.parquet",
        "toy-train.tfrecord-00000-of-00003",
        "toy-train.tfrecord-00001-of-00003",
        "toy-train.tfrecord-00002-of-00003",
    ]


def test_every_image_is_where_the_index_says(data_set, images):
    found = set()
    for split in ("train", "test"):
        index = load_index(str(data_set), split)
        names = index.class_names()
        columns = ["source_id", "sha256", "source_sha256", "height", "width", "length"]
        rows = zip(
            index.shard, index.offset, index.label, *(index.column(c) for c in columns), strict=True
        )
        for shard, offset, label, source, sha, source_sha, height, width, length in rows:
            with open(index.shards[shard], "rb") as file:
                payload = read_record(file, int(offset))
            record = decode_example(payload)
            assert len(payload) == length.as_py()
            assert record["image/source_id"].decode() == source.as_py()
            assert record["image/class/text"].decode() == names[int(label)]
            assert record["image/class/label"] == label
            size = (height.as_py(), width.as_py())
            assert (record["image/height"], record["image/width"]) == size
            assert min(size) == 32
            assert hashlib.sha256(record["image/encoded"]).digest() == sha.as_py()
            original = (images / source.as_py()).read_bytes()
            assert hashlib.sha256(original).digest() == source_sha.as_py()
            assert source.as_py().split("/")[0] == names[int(label)]
            found.add(source.as_py())
        # The records of a class lie together.
        assert (np.diff(index.label) >= 0).all()
    assert found == {str(p.relative_to(images)) for p in images.rglob("*.png")}


def test_classes_and_splits(data_set):
    table = pq.read_table(data_set / "classes.parquet").to_pylist()
    assert [row["name"] for row in table] == [f"class_{i:02d}" for i in range(6)]
    assert [row["split"] for row in table] == ["train", "train", "test"] * 2
    assert [row["label"] for row in table] == list(range(6))
    assert [row["count"] for row in table] == [5] * 6
    info = load_info(str(data_set))
    assert info.num_images == {"test": 10, "train": 20}
    assert info.num_classes == {"test": 2, "train": 4}
    assert info.num_rejected == 2


def test_what_is_left_out_is_listed(data_set):
    lines = (data_set / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "source_id": "class_00/broken.jpg",
            "class": "class_00",
            "reason": "not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
        },
        {"source_id": "class_01/.hidden", "class": "class_01", "reason": "hidden file"},
    ]


def test_same_bytes_from_another_place_and_thread_count(images, data_set, tmp_path):
    shutil.copytree(images, tmp_path / "elsewhere")
    run(tmp_path / "elsewhere", tmp_path / "data", threads=1)
    assert content(tmp_path / "data") == content(data_set)


def test_what_lies_in_the_output_is_not_mixed(images, data_set, tmp_path):
    before = content(data_set)
    with pytest.raises(UsageError, match=r"other settings \(image.short_side 32, now 24\)"):
        run(images, data_set, short_side=24)
    more = shutil.copytree(images, tmp_path / "more")
    shutil.copy(more / "class_00/00.png", more / "class_00/new.png")
    with pytest.raises(UsageError, match="made from other images"):
        run(more, data_set)
    assert content(data_set) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(images, tmp_path, overwrite):
    names = ["thesis.tex", "toy-train.tfrecord-00000-of-00001", "features.json"]
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="not empty, and no data set"):
        run(images, tmp_path, overwrite=overwrite)
    assert sorted(content(tmp_path)) == sorted(names)


def test_overwrite(images, data_set, tmp_path):
    output = shutil.copytree(data_set, tmp_path / "data")
    (output / "notes.txt").write_text("mine")
    run(images, output, images_per_shard=100, overwrite=True)
    assert sorted(content(output)) == [
        "classes.parquet",
        "dataset_info.json",
        "duplicates.jsonl",
        "features.json",
        "notes.txt",
        "rejected.jsonl",
        "toy-test.index.parquet",
        "toy-test.tfrecord-00000-of-00001",
        "toy-train.index.parquet",
        "toy-train.tfrecord-00000-of-00001",
    ]


def test_overwrite_that_cannot_be_planned_leaves_what_is_there(images, data_set, tmp_path):
    output = shutil.copytree(data_set, tmp_path / "data")
    with pytest.raises(UsageError, match="gets none"):
        run(images, output, splits=HashSplits({"a": 0.999999, "b": 0.000001}), overwrite=True)
    shutil.rmtree(output / ".work")
    assert content(output) == content(data_set)


def test_an_image_that_changed_is_noticed(images, data_set, tmp_path):
    copy = shutil.copytree(images, tmp_path / "images")
    output = shutil.copytree(data_set, tmp_path / "data")
    run(copy, output)  # the same images in another folder
    path = copy / "class_02/03.png"
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1
    path.write_bytes(changed)  # the size stays
    with pytest.raises(UsageError, match="changed since"):
        run(copy, output)
    assert content(output) == content(data_set)


def test_the_order_of_shares_does_not_matter(images, tmp_path):
    for name, shares in [("one", {"a": 0.5, "b": 0.5}), ("two", {"b": 0.5, "a": 0.5})]:
        run(images, tmp_path / name, splits=HashSplits(shares))
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("input", ["", "/*tfrecord*", "/toy-test.tfrecord-00000-of-00002"])
def test_records_are_not_replaced_by_what_is_made_of_them(data_set, tmp_path, input):
    output = shutil.copytree(data_set, tmp_path / "data")
    with pytest.raises(UsageError, match="lies in the input"):
        run(f"tfrecord:{output}{input}", output, short_side=16, overwrite=True)
    assert content(output) == content(data_set)


def test_names_of_records_that_repeat(data_set, tmp_path):
    """Records with repeated names are refused, since nothing tells their images apart."""
    for copy in ("one", "two"):
        for path in data_set.glob("toy-train.tfrecord*"):
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / f"{copy}-{path.name}").write_bytes(path.read_bytes())
    named = RecordsInput(source_id="image/source_id")
    with pytest.raises(UsageError, match=r"feature 'image/source_id': 20 names .*such as class_0"):
        run(f"tfrecord:{tmp_path}/in", tmp_path / "data", records=named)
    assert not (tmp_path / "data/dataset_info.json").exists()
    run(f"tfrecord:{tmp_path}/in/one*", tmp_path / "data", records=named)


def test_a_full_disk_is_one_line(images, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UsageError) as raised:
            run(images, tmp_path / "data")
    assert re.fullmatch(
        r"the job failed: OSError: \[Errno 28\] No space left on device \[while running .*\];"
        " the same command goes on from the finished shards",
        str(raised.value),
    )
    run(images, tmp_path / "data")


def test_a_disk_in_trouble_rejects_nothing(images, tmp_path, monkeypatch):
    def fail(data, settings):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shards, "canonical_jpeg", fail)
    with pytest.raises(UsageError, match=r"png: Input/output error; run the same command again"):
        run(images, tmp_path / "data")


def test_csv_with_splits(tmp_path):
    rows = ["path,label,split"]
    for i, (label, split) in enumerate([("a", "train"), ("b", "train"), ("c/d", "test")] * 2):
        (tmp_path / f"{i}.tiff").write_bytes(encode("RGB", format="TIFF"))
        rows.append(f"{i}.tiff,{label},{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    info = run(tmp_path / "list.csv", tmp_path / "data").info
    assert info.num_images == {"test": 2, "train": 4}
    assert load_index(str(tmp_path / "data"), "test").class_names()[2] == "c/d"


def test_too_many_rejected(images, tmp_path):
    bad = shutil.copytree(images, tmp_path / "bad")
    for path in list(bad.rglob("*.png"))[:4]:
        path.write_bytes(b"")
    message = (
        r"5 of 31 images rejected \(at most 10% may be\): 4 x empty file;"
        r" 1 x not a JPEG.*rejected.jsonl"
    )
    with pytest.raises(UsageError, match=message):
        run(bad, tmp_path / "data")
    assert not (tmp_path / "data" / "dataset_info.json").exists()
    # With a larger share allowed, the same command goes on.
    assert run(bad, tmp_path / "data", max_rejected_share=0.5).info.num_rejected == 6


def test_command_line(images, data_set, tmp_path):
    flags = [f"--input={images}", f"--output={tmp_path / 'data'}", *SETTINGS]
    done = command(*flags, "--direct_num_workers=1")
    assert done.returncode == 0, done.stderr
    assert "test                2           10        2" in done.stdout
    assert "left out: 2 files" in done.stdout
    assert "next: python -m trainer.main" in done.stdout
    assert content(tmp_path / "data") == content(data_set)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--input is missing"),
        (["--input=nowhere"], "--output is missing"),
        (["--input=nowhere", "--output=o"], "nowhere: no such file or folder"),
        (["--input={images}", "--output=o", "--quallity=3"], "unknown flag '--quallity=3'"),
        (["--input={images}", "--output=o", "--direct_running_mode=fast"], "choice: 'fast'"),
        (["--input=", "--output=o"], "--input is missing"),
        (["--input=s3://bucket/images", "--output=o"], "local paths and gs:// only"),
        (["--input=gs:///images", "--output=o"], "no bucket"),
        (["--input={images}", "--output=/dev/null/x"], "/dev/null/x"),
        (["--input={images}", "--output=o", "--gin_param=preprocess.x = 1"], "parameter named 'x'"),
        (["--input={images}", "--output=o", "--gin_param=preproces.x = 1"], "preproces"),
        (
            ["--input={images}", "--output=o", "--gin_file=no.gin"],
            "--gin_file no.gin: no such file",
        ),
        (["--input={images}", "--output={images}"], "lies in the input"),
        (["--input={images}", "--output=o", "--gin_param=preprocess.quality = 101"], "101"),
        (["--input={images}", "--output=o", "--name=Ü"], "name 'Ü'"),
    ],
)
def test_errors_of_use_are_one_line(images, tmp_path, arguments, message):
    arguments = [a.format(images=images).replace("=o", f"={tmp_path}/o") for a in arguments]
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def with_duplicates(root: Path) -> Path:
    """Writes six classes: class_02 and class_05 are test, the others are train."""
    class_folder(root, classes=6, images=3)
    (root / "class_00/copy.png").write_bytes((root / "class_00/01.png").read_bytes())
    (root / "class_01/other_label.png").write_bytes((root / "class_03/02.png").read_bytes())
    (root / "class_04/from_test.png").write_bytes((root / "class_02/00.png").read_bytes())
    return root


def source_ids(folder: Path) -> set[str]:
    splits = load_info(str(folder)).num_shards
    return {
        name for s in splits for name in load_index(str(folder), s).column("source_id").to_pylist()
    }


GROUPS = [
    ("within class", ["class_00/01.png", "class_00/copy.png"]),
    ("across classes", ["class_01/other_label.png", "class_03/02.png"]),
    ("across splits", ["class_02/00.png", "class_04/from_test.png"]),
]


def listed_duplicates(folder: Path) -> list[tuple[str, list[str]]]:
    rows = map(json.loads, (folder / "duplicates.jsonl").read_text().splitlines())
    return [(row["kind"], [image["source_id"] for image in row["images"]]) for row in rows]


def test_duplicates_are_kept_and_listed(tmp_path, capsys):
    from pipeline.preprocess.summary import print_summary

    images = with_duplicates(tmp_path / "images")
    outcome = run(images, tmp_path / "data")
    assert listed_duplicates(tmp_path / "data") == GROUPS
    assert len(source_ids(tmp_path / "data")) == 21
    kinds = {kind: 1 for kind, _ in GROUPS}
    assert outcome.info.duplicates == kinds
    print_summary(outcome)
    assert "warning: some images are in more than one split" in capsys.readouterr().out


def test_duplicates_are_dropped(tmp_path):
    images = with_duplicates(tmp_path / "images")
    run(images, tmp_path / "data", duplicates="drop")
    everything = {str(path.relative_to(images)) for path in images.rglob("*.png")}
    gone = {
        "class_00/copy.png": "within class",
        "class_01/other_label.png": "across classes",
        "class_03/02.png": "across classes",
        "class_04/from_test.png": "across splits",
    }
    assert source_ids(tmp_path / "data") == everything - gone.keys()
    rows = map(json.loads, (tmp_path / "data/rejected.jsonl").read_text().splitlines())
    assert {row["source_id"]: row["reason"] for row in rows} == {
        name: f"exact duplicate {kind}" for name, kind in gone.items()
    }
    assert listed_duplicates(tmp_path / "data") == GROUPS


def test_images_of_one_size_are_no_duplicates(tmp_path):
    rng = np.random.default_rng(0)
    header = encode("L", (200, 200), format="BMP")
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, 20_000, np.uint8).tobytes()
            # All files have the same size, and two of them have the same middle.
            end = header[20_000:-9] + bytes(8) + bytes([i % 2]) if name == "b" else header[20_000:]
            data = header[:2_000] + pixels[: 18_000 if name == "a" else 0] + header[20_000:]
            data = data if name == "a" else header[:20_000] + end
            (tmp_path / "images" / name / f"{i}.bmp").write_bytes(data)
    run(tmp_path / "images", tmp_path / "data", splits=SortedSplits(["train"]))
    assert listed_duplicates(tmp_path / "data") == [
        ("within class", ["b/0.bmp", "b/2.bmp"]),
        ("within class", ["b/1.bmp", "b/3.bmp"]),
    ]


def test_small_classes_are_left_out_and_named(tmp_path, capsys):
    from pipeline.preprocess.summary import print_summary

    images = class_folder(tmp_path / "images", classes=4, images=4)
    (images / "class_01/00.png").unlink()  # three images are left, which is too few
    (images / "class_02/01.png").write_bytes(b"bad")  # three images can be read
    outcome = run(images, tmp_path / "data", min_images=4, max_rejected_share=0.5)
    assert outcome.info.classes_left_out == ["class_01"]
    assert outcome.info.classes_fallen_below == ["class_02"]
    table = pq.read_table(tmp_path / "data/classes.parquet").to_pylist()
    assert [(r["label"], r["name"], r["count"]) for r in table] == [
        (0, "class_00", 4),
        (1, "class_02", 3),
        (2, "class_03", 4),
    ]
    rows = map(json.loads, (tmp_path / "data/rejected.jsonl").read_text().splitlines())
    found = {row["source_id"]: row["reason"] for row in rows}
    assert found.pop("class_02/01.png").startswith("not a JPEG")
    assert found == {f"class_01/0{i}.png": "class with fewer than 4 images" for i in (1, 2, 3)}
    print_summary(outcome)
    printed = capsys.readouterr().out
    assert "left out with fewer than 4 images: class_01" in printed
    assert "fewer than 4 images that can be read: class_02" in printed
    with pytest.raises(UsageError, match="none of the 4 classes has min_images = 9"):
        run(images, tmp_path / "none", min_images=9)


def test_query_and_gallery(tmp_path):
    images = class_folder(tmp_path / "images", classes=4, images=10)
    (images / "class_01/copy.png").write_bytes((images / "class_01/04.png").read_bytes())
    rule = QueryGallery(classes=SortedSplits(["train", "test"]), query_share=0.3)
    info = run(images, tmp_path / "data", splits=rule).info
    assert info.num_images == {"train": 20, "query": 6, "gallery": 15}
    assert info.num_classes == {"train": 2, "query": 2, "gallery": 2}
    query, gallery = (load_index(str(tmp_path / "data"), s) for s in ("query", "gallery"))
    assert set(query.label) == set(gallery.label) == {1, 3}
    names = {*query.column("source_id").to_pylist()}
    assert not names & {"class_01/copy.png", "class_01/04.png"}  # these two would find each other
    assert not names & {*gallery.column("source_id").to_pylist()}


def test_columns_of_a_list_are_carried(tmp_path):
    images = class_folder(tmp_path / "images", classes=2, images=2)
    rows = []
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        row = {"file": f"images/{path.relative_to(images)}", "id": path.parent.name}
        rows.append({**row, "camera": i % 2, "note": None if i else "first, with a comma"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "list.jsonl").write_text(lines)
    from preprocessing.sources.manifests import ManifestInput

    manifest = ManifestInput(path="file", label="id", group="camera")
    info = run(
        tmp_path / "list.jsonl",
        tmp_path / "data",
        manifest=manifest,
        splits=SortedSplits(["train"]),
    ).info
    assert (info.columns, info.group) == (["x_camera", "x_note"], "x_camera")
    index = load_index(str(tmp_path / "data"), "train")
    assert index.column("x_camera").to_pylist() == ["0", "1", "0", "1"]
    assert index.column("x_note").to_pylist() == ["first, with a comma", None, None, None]


def test_too_many_that_are_lost_since(images, data_set, tmp_path):
    """The data set is finished, so there is no work folder any more."""
    copy = shutil.copytree(images, tmp_path / "images")
    output = shutil.copytree(data_set, tmp_path / "data")
    for path in sorted(copy.rglob("*.png"))[:9]:
        path.unlink()
        path.symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"9 of 31 images in the input cannot be used.*No such"):
        run(copy, output)
    assert (output / ".work/rejected.jsonl").read_text().count("No such") == 9


@pytest.mark.parametrize("policy", ["keep", "drop", "error"])
def test_files_that_are_no_images_are_no_duplicates(images, tmp_path, policy):
    copy = shutil.copytree(images, tmp_path / "images")
    for number, path in enumerate(sorted(copy.rglob("*.png"))[:28:7]):
        path.write_bytes(b"" if number % 2 else b"<html>not found</html>")
    info = run(copy, tmp_path / "data", duplicates=policy, max_rejected_share=0.3).info
    assert (info.num_rejected, sum(info.duplicates.values())) == (6, 0)
    with pytest.raises(UsageError, match=r"5 of 31 images rejected"):
        run(copy, tmp_path / "less", duplicates=policy)
