"""Embedding jobs that are killed, repeated, or find other files in their output."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.embedding import model as models
from tests.fixtures import exported, jobs
from tests.fixtures.datasets import make_data_set
from tests.fixtures.embedding_jobs import BATCH, MODULE, run
from tests.fixtures.exported import SIDE, export_model
from tests.fixtures.folders import class_folder
from tests.fixtures.jobs import ROOT, command, content, sidecars_in
from tripletmill.errors import UsageError
from tripletmill.formats import embeddings

CLASSES, IMAGES = 5, 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with images in images/, and a data set of these images in data/."""
    folder = tmp_path_factory.mktemp("photos")
    class_folder(folder / "images", classes=CLASSES, images=IMAGES)
    (folder / "images/class_03/bad.png").write_bytes(b"no image")
    make_data_set(folder, short_side=SIDE, cycle=("train", "test"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return export_model(tmp_path_factory.mktemp("run") / "export")


@pytest.fixture(scope="module")
def of_images(photos, model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("images") / "embeddings"
    run(model, output, input=photos / "images")
    return output


def test_killed_and_started_again(photos, model, tmp_path):
    """Kills a real process with kill -9 between two shards."""
    # The batches are much larger than a shard, so each shard takes some time.
    settings = {"batch_size": 600}
    flags = [
        f"--model_dir={model}",
        f"--data_dir={photos / 'data'}",
        f"--output={tmp_path / 'out'}",
        *(f"--gin_param=embed.{name} = {value}" for name, value in settings.items()),
    ]
    process = subprocess.Popen([sys.executable, "-m", MODULE, *flags], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not sidecars_in(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = sidecars_in(tmp_path / "out")
    kept = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}
    assert kept
    assert not embeddings.is_finished(str(tmp_path / "out"))

    done = command(*flags, module=MODULE)
    assert done.returncode == 0, done.stderr
    count = sum(len(sidecar.rows) + len(sidecar.rejected) for sidecar in before.values())
    assert f"{count} images lay in finished shards" in done.stdout
    for name, written in kept.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == written
    run(model, tmp_path / "unbroken", data=photos / "data", **settings)
    assert content(tmp_path / "out") == content(tmp_path / "unbroken")


def fail_after(monkeypatch, number: int) -> list[int]:
    """Makes the job fail after this many batches; returns the sizes of the batches before."""
    sizes: list[int] = []
    embed = models.Model.embed

    def fail(self, jpegs):
        if len(sizes) == number:
            raise MemoryError("as if killed")
        sizes.append(len(jpegs))
        return embed(self, jpegs)

    monkeypatch.setattr(models.Model, "embed", fail)
    return sizes


def break_off(monkeypatch, model: Path, output: Path, *, batches: int = 4, **arguments) -> None:
    """Runs a job that fails after this many batches."""
    with monkeypatch.context() as patch:
        fail_after(patch, batches)
        with pytest.raises(MemoryError):
            run(model, output, **arguments)


def test_nothing_finished_is_embedded_again(photos, model, of_images, tmp_path, monkeypatch):
    break_off(monkeypatch, model, tmp_path / "out", input=photos / "images")
    before = sidecars_in(tmp_path / "out")
    assert 1 <= len(before) <= 3
    rows = sum(len(sidecar.rows) for sidecar in before.values())
    with monkeypatch.context() as patch:
        sizes = fail_after(patch, 1000)
        run(model, tmp_path / "out", input=photos / "images")
    assert sum(sizes) == CLASSES * IMAGES - rows
    assert max(sizes) <= BATCH
    assert content(tmp_path / "out") == content(of_images)


def other_model(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    exported.write_card(folder, fingerprint="3" * 64)
    return folder


@pytest.mark.parametrize("whole", [True, False])
def test_what_changed_is_said(photos, model, of_images, tmp_path, monkeypatch, whole):
    """The same is said for finished embeddings and for those of an interrupted job."""
    output, images = tmp_path / "out", shutil.copytree(photos / "images", tmp_path / "images")
    if whole:
        run(model, output, input=images)
    else:
        break_off(monkeypatch, model, output, input=images)
    before = content(output)
    other = other_model(model, tmp_path / "model")
    for arguments, message in (
        (
            {"model": other, "input": images},
            r"holds embeddings with other settings \(model 1+, now",
        ),
        ({"model": model, "input": images, "batch_size": 5}, "batch_size 4, now 5"),
        ({"model": model, "input": images, "images_per_shard": 9}, "images_per_shard 8, now 9"),
        ({"model": model, "data": photos / "data"}, "other settings"),
    ):
        with pytest.raises(UsageError, match=message):
            run(output=output, **arguments)
    shutil.copy(images / "class_00/00.png", images / "class_00/new.png")
    with pytest.raises(UsageError, match="holds embeddings made from other images"):
        run(model, output, input=images)
    assert content(output) == before

    outcome = run(other, output, input=images, overwrite=True)
    assert outcome.images_reused == 0
    run(other, tmp_path / "anew", input=images)
    assert content(output) == content(tmp_path / "anew")


def test_images_that_changed_since(photos, model, tmp_path):
    images = shutil.copytree(photos / "images", tmp_path / "images")
    run(model, tmp_path / "out", input=images)
    later = time.time() + 1  # a file's time may lag by one tick of the kernel's clock
    os.utime(images / "class_00/00.png", (later, later))
    with pytest.raises(UsageError, match="or from images that have changed since"):
        run(model, tmp_path / "out", input=images)


def test_another_data_set_or_other_splits(photos, model, tmp_path):
    run(model, tmp_path / "out", data=photos / "data")
    shutil.copytree(photos / "images", tmp_path / "images")
    (tmp_path / "images/class_00/00.png").unlink()
    make_data_set(tmp_path, short_side=SIDE, cycle=("train", "test"))
    for arguments in ({"data": tmp_path / "data"}, {"data": photos / "data", "splits": ["test"]}):
        with pytest.raises(UsageError, match="holds embeddings made from other images"):
            run(model, tmp_path / "out", **arguments)


def test_what_is_not_ours_is_left_alone(photos, model, tmp_path, monkeypatch):
    images = photos / "images"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("mine")
    shutil.copytree(photos / "data", tmp_path / "data")
    break_off_preprocessing(monkeypatch, images, tmp_path / "unfinished")
    before = content(tmp_path)
    for output in ("file", "folder", "data", "unfinished"):
        with pytest.raises(UsageError, match=r"not a folder|no embeddings of tripletmill"):
            run(model, tmp_path / output, input=images, overwrite=True)
    assert content(tmp_path) == before


def break_off_preprocessing(monkeypatch, images: Path, output: Path) -> None:
    def fail(*_, **__):
        raise MemoryError("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.preprocess.writing.write_shard", fail)
        with pytest.raises(MemoryError):
            jobs.run(images, output)


def test_preprocessing_leaves_embeddings_alone(photos, model, of_images, tmp_path, monkeypatch):
    break_off(monkeypatch, model, tmp_path / "out", batches=0, input=photos / "images")
    for output in (tmp_path / "out", of_images):
        before = content(output)
        with pytest.raises(UsageError, match="no data set of tripletmill"):
            jobs.run(photos / "images", output, overwrite=True)
        assert content(output) == before


def test_a_worker_with_another_library_stops(photos, model, tmp_path, monkeypatch):
    found = {"pyarrow": "0", "tensorflow": "0"}
    versions = ({**found, "tensorflow": version} for version in ("1", "2"))
    monkeypatch.setattr("pipeline.embedding.settings.library_versions", lambda kind: next(versions))
    monkeypatch.setattr("pipeline.embedding.job.library_versions", lambda kind: next(versions))
    with pytest.raises(UsageError, match="a worker has tensorflow 2, the job was started with 1"):
        run(model, tmp_path / "out", data=photos / "data")
