"""The Beam job, whole: what it writes, what it refuses, and that it goes on where it stopped."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

from pipeline.preprocess import preprocess
from pipeline.runners import clean_errors
from preprocessing import shards
from preprocessing.errors import UsageError
from preprocessing.index import load_index, load_info
from preprocessing.plan import HashSplits, SortedSplits
from preprocessing.records import decode_example, read_record
from tests.fixtures.folders import class_folder
from tests.fixtures.images import encode

ROOT = Path(__file__).parents[2]
SPLITS = SortedSplits(["train", "train", "test"])


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = class_folder(tmp_path_factory.mktemp("input") / "images", classes=6, images=5)
    (root / "class_00" / "broken.jpg").write_bytes(b"no image")
    (root / "class_01" / ".hidden").write_bytes(b"")
    return root


def run(input: Path, output: Path, *flags: str, **arguments):
    settings = {"short_side": 32, "splits": SPLITS, "images_per_shard": 8, "name": "toy"}
    with clean_errors():
        return preprocess(
            input=str(input),
            output=str(output),
            runner=FnApiRunner(),
            options=PipelineOptions(list(flags)),
            **{**settings, "max_rejected_share": 0.1, **arguments},
        )


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def data_set(images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("output") / "data"
    run(images, output)
    return output


def test_files(data_set):
    assert sorted(content(data_set)) == [
        "classes.parquet",
        "dataset_info.json",
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
        # A class lies together.
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


@pytest.mark.parametrize(
    "flags",
    [
        ("--direct_running_mode=multi_threading", "--direct_num_workers=2"),
        ("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
    ],
)
def test_same_bytes_on_every_runner(images, data_set, tmp_path, flags):
    run(images, tmp_path / "data", *flags)
    assert content(tmp_path / "data") == content(data_set)


def test_same_bytes_from_another_place_and_thread_count(images, data_set, tmp_path):
    shutil.copytree(images, tmp_path / "elsewhere")
    run(tmp_path / "elsewhere", tmp_path / "data", threads=1)
    assert content(tmp_path / "data") == content(data_set)


def test_goes_on_from_finished_shards(images, data_set, tmp_path, monkeypatch):
    written = []
    write_shard = shards.write_shard

    def fail_at_third(task, **arguments):
        if len(written) == 2:
            raise MemoryError("as if killed")
        write_shard(task, **arguments)
        written.append(task.file_name)

    monkeypatch.setattr("pipeline.preprocess.write_shard", fail_at_third)
    with pytest.raises(MemoryError):
        run(images, tmp_path / "data")
    monkeypatch.undo()
    assert len(written) == 2

    read = []
    canonical_jpeg = shards.canonical_jpeg
    monkeypatch.setattr(
        shards, "canonical_jpeg", lambda data, s: read.append(1) or canonical_jpeg(data, s)
    )
    finished = [shards.read_sidecar(str(tmp_path / "data/.work"), name) for name in written]
    run(images, tmp_path / "data")
    assert len(read) == 31 - sum(len(s.rows) + len(s.rejected) for s in finished if s)
    assert content(tmp_path / "data") == content(data_set)


def test_finished_data_set_is_left_alone(images, data_set):
    before = {path: path.stat().st_mtime_ns for path in data_set.iterdir()}
    info = run(images, data_set)
    assert info == load_info(str(data_set))
    assert {path: path.stat().st_mtime_ns for path in data_set.iterdir()} == before


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
    run(copy, output)  # the same images in another place
    path = copy / "class_02/03.png"
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1
    path.write_bytes(changed)  # the same size
    with pytest.raises(UsageError, match="changed since"):
        run(copy, output)
    assert content(output) == content(data_set)


def test_the_order_of_shares_does_not_matter(images, tmp_path):
    for name, shares in [("one", {"a": 0.5, "b": 0.5}), ("two", {"b": 0.5, "a": 0.5})]:
        run(images, tmp_path / name, splits=HashSplits(shares))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_shard_that_lost_its_end_is_made_again(images, data_set, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.preprocess._commit", _fail)
    with pytest.raises(MemoryError):
        run(images, tmp_path / "data")
    monkeypatch.undo()
    os.truncate(tmp_path / "data/toy-train.tfrecord-00001-of-00003", 1000)
    run(images, tmp_path / "data")
    assert content(tmp_path / "data") == content(data_set)


def _fail(*_, **__):
    raise MemoryError("as if killed")


def test_a_second_job_is_kept_out(images, tmp_path, monkeypatch):
    def start_another(*_, **__):
        run(images, tmp_path / "data")

    monkeypatch.setattr("pipeline.preprocess._commit", start_another)
    with pytest.raises(UsageError, match="another process is writing there"):
        run(images, tmp_path / "data")


def test_output_in_the_input(images):
    with pytest.raises(UsageError, match="lies in the input"):
        run(images, images / "data")


def test_a_disk_in_trouble_rejects_nothing(images, tmp_path, monkeypatch):
    def fail(data, settings):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shards, "canonical_jpeg", fail)
    with pytest.raises(UsageError, match=r"png: Input/output error; the same command goes on"):
        run(images, tmp_path / "data")


def test_csv_with_splits(tmp_path):
    rows = ["path,label,split"]
    for i, (label, split) in enumerate([("a", "train"), ("b", "train"), ("c/d", "test")] * 2):
        (tmp_path / f"{i}.tiff").write_bytes(encode("RGB", format="TIFF"))
        rows.append(f"{i}.tiff,{label},{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    info = run(tmp_path / "list.csv", tmp_path / "data")
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
    # The same command goes on once more are allowed.
    assert run(bad, tmp_path / "data", max_rejected_share=0.5).num_rejected == 6


def test_vanished_image_is_rejected(images, tmp_path):
    from preprocessing.sources import open_source

    copy = shutil.copytree(images, tmp_path / "copy")
    source = open_source(str(copy))
    [ref, *_] = source.list_part("class_03")
    (copy / ref.source_id).unlink()
    task = shards.ShardTask("s", 0, [(3, ref), (3, dataclasses.replace(ref, path=str(copy)))])
    (tmp_path / "out").mkdir()
    shards.write_shard(
        task,
        output=str(tmp_path / "out"),
        work=str(tmp_path / "out"),
        settings={},
        image=shards.ImageSettings(),
        threads=1,
    )
    sidecar = shards.read_sidecar(str(tmp_path / "out"), "s")
    assert [r.reason for r in sidecar.rejected] == [
        "cannot be read: No such file or directory",
        "cannot be read: Is a directory",
    ]


def command(*arguments: str, **kw) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        **kw,
    )


def test_command_line(images, data_set, tmp_path):
    settings = [
        "preprocess.short_side = 32",
        "preprocess.images_per_shard = 8",
        "preprocess.max_rejected_share = 0.1",
        "preprocess.splits = @SortedSplits()",
        "SortedSplits.cycle = ['train', 'train', 'test']",
    ]
    flags = [f"--input={images}", f"--output={tmp_path / 'data'}", "--name=toy"]
    done = command(*flags, *(f"--gin_param={s}" for s in settings), "--direct_num_workers=1")
    assert done.returncode == 0, done.stderr
    assert "test                2           10        2" in done.stdout
    assert "left out: 2 files" in done.stdout
    assert "next: python -m trainer.main" in done.stdout
    assert content(tmp_path / "data") == content(data_set)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_and_run_again(tmp_path, number):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (1500, 2000, 3), np.uint8))
    for name in ("a", "b", "c", "d"):
        (tmp_path / "images" / name).mkdir(parents=True)
        large.save(tmp_path / "images" / name / "0.jpg")
        for i in range(1, 12):
            os.link(tmp_path / f"images/{name}/0.jpg", tmp_path / f"images/{name}/{i}.jpg")
    flags = [
        f"--input={tmp_path / 'images'}",
        "--name=toy",
        "--gin_param=preprocess.splits = @SortedSplits()",
        "--gin_param=preprocess.images_per_shard = 6",
        "--gin_param=preprocess.threads = 1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.main", *flags, f"--output={tmp_path / 'killed'}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("killed/.work/*.sidecar.parquet")):
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert stderr.endswith("interrupted; the same command goes on from the finished shards\n")
        assert "Traceback" not in stderr
    finished = set(tmp_path.glob("killed/.work/*.sidecar.parquet"))
    assert 1 <= len(finished) < 8
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/*.tfrecord-*")}

    for output in ("killed", "unbroken"):
        assert command(*flags, f"--output={tmp_path / output}").returncode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "unbroken")
    for path in finished:
        shard = tmp_path / "killed" / path.name.removesuffix(".sidecar.parquet")
        assert shard.stat().st_mtime_ns == times[shard]  # not made again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--input is missing"),
        (["--input=nowhere"], "--output is missing"),
        (["--input=nowhere", "--output=o"], "nowhere: no such file or folder"),
        (["--input={images}", "--output=o", "--quallity=3"], "unknown flag '--quallity=3'"),
        (["--input={images}", "--output=o", "--runner=DaskRunner"], "refused"),
        (["--input={images}", "--output=o", "--runner=Bogus"], "runner: Bogus"),
        (["--input={images}", "--output=o", "--direct_num_workers=-1"], "workers=-1: 0"),
        (["--input=", "--output=o"], "--input is missing"),
        (["--input=gs://bucket/images", "--output=o"], "only local paths"),
        (["--input={images}", "--output=/dev/null/x"], "/dev/null/x"),
        (["--input={images}", "--output=o", "--gin_param=preprocess.threads = 0"], "threads"),
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
