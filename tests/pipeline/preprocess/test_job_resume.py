"""A job may be killed at any point; the same command goes on and writes the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.preprocess import listing
from preprocessing.writing import commit, shards
from preprocessing.writing.claim import Claim
from preprocessing.writing.sidecars import Sidecar
from tests.fixtures.folders import class_folder
from tests.fixtures.jobs import ROOT, command, content, run, sidecars_in, start
from tripletmill.errors import UsageError
from tripletmill.formats import index

KILLS = 20
PHOTOS = 400


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = class_folder(tmp_path_factory.mktemp("input") / "images", classes=6, images=5)
    (root / "class_00" / "broken.jpg").write_bytes(b"no image")
    shutil.copy(root / "class_01/00.png", root / "class_01/copy.png")
    return root


@pytest.fixture(scope="module")
def data_set(images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("output") / "data"
    run(images, output)
    return output


def num_images(finished: dict[str, Sidecar]) -> int:
    return sum(len(sidecar.rows) + len(sidecar.rejected) for sidecar in finished.values())


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Large images, all different, which take one core some seconds."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
    noise.resize((1600, 1200)).save(root / "photo.jpg")
    photo = (root / "photo.jpg").read_bytes()
    for name in "abcd":
        (root / "images" / name).mkdir(parents=True)
        for i in range(PHOTOS // 4):
            # Bytes after the end of an image change only its hash.
            path = root / "images" / name / f"{i}.jpg"
            path.write_bytes(photo + f"{name}{i:03}".encode())
    return root / "images"


PHOTO_SETTINGS = [
    "--name=toy",
    "--gin_param=preprocess.splits = @SortedSplits()",
    "--gin_param=preprocess.images_per_shard = 4",
    "--gin_param=preprocess.threads = 1",
]


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "data"
    done = command(f"--input={photos}", f"--output={output}", *PHOTO_SETTINGS)
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.slow
def test_killed_at_twenty_moments(photos, unbroken, tmp_path):
    output, log = tmp_path / "data", tmp_path / "log"
    arguments = [f"--input={photos}", f"--output={output}", *PHOTO_SETTINGS]
    moments = random.Random(4)
    kept: dict[str, int] = {}
    for attempt in range(KILLS):
        process = start(arguments, log=log)
        if attempt % 2:
            # The job is killed while it reads and writes images ...
            deadline = time.monotonic() + 60
            while len(sidecars_in(output)) <= len(kept) and time.monotonic() < deadline:
                time.sleep(0.01)
            process.join(moments.uniform(0, 0.1))
        else:
            # ... or while it lists and plans, or wherever it is on this machine.
            process.join(moments.uniform(0, 1.5))
        assert process.exitcode is None, log.read_text()
        process.kill()
        process.join()
        finished = sidecars_in(output)
        assert kept.keys() <= finished.keys()  # finished shards stay finished
        for name, written in kept.items():
            assert (output / name).stat().st_mtime_ns == written  # and are not written again
        kept = {name: (output / name).stat().st_mtime_ns for name in finished}
    last = num_images(sidecars_in(output))
    assert 40 <= last < PHOTOS
    process = start(arguments, log=log)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    assert content(output) == content(unbroken)
    assert f"{last} images lay in finished shards; {PHOTOS - last} were read" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_command(photos, unbroken, tmp_path, number):
    arguments = [f"--input={photos}", f"--output={tmp_path / 'data'}", *PHOTO_SETTINGS]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.main", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not sidecars_in(tmp_path / "data"):
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert stderr.endswith("interrupted; the same command goes on from the finished shards\n")
        assert "Traceback" not in stderr
    finished = num_images(sidecars_in(tmp_path / "data"))
    assert 4 <= finished < PHOTOS
    done = command(*arguments)
    assert done.returncode == 0
    assert f"{finished} images lay in finished shards; {PHOTOS - finished} were" in done.stdout
    assert content(tmp_path / "data") == content(unbroken)


def fail_after(monkeypatch, number: int) -> list[str]:
    """Makes the job fail when this many shards are written; returns their names."""
    written: list[str] = []
    write_shard = shards.write_shard

    def fail(task, **arguments):
        if len(written) == number:
            raise MemoryError("as if killed")
        result = write_shard(task, **arguments)
        written.append(task.file_name)
        return result

    monkeypatch.setattr("pipeline.preprocess.writing.write_shard", fail)
    return written


def test_nothing_finished_is_read_again(images, data_set, tmp_path, monkeypatch):
    fail_after(monkeypatch, 2)
    with pytest.raises(MemoryError):
        run(images, tmp_path / "data")
    monkeypatch.undo()
    finished = num_images(sidecars_in(tmp_path / "data"))

    opened = []
    read = shards.read_image
    monkeypatch.setattr(shards, "read_image", lambda ref: opened.append(ref.path) or read(ref))
    for function in ("middle_hash", "full_md5"):
        # Planning has already hashed the images of equal size and kept the hashes.
        monkeypatch.setattr(f"preprocessing.writing.duplicates.{function}", opened.append)
    outcome = run(images, tmp_path / "data")
    assert len(opened) == 32 - finished
    assert (outcome.images_read, outcome.images_reused) == (32 - finished, finished)
    assert content(tmp_path / "data") == content(data_set)


def test_what_changed_is_said(images, tmp_path, monkeypatch):
    fail_after(monkeypatch, 2)
    with pytest.raises(MemoryError):
        run(images, tmp_path / "data")
    monkeypatch.undo()
    before = content(tmp_path / "data")
    with pytest.raises(UsageError, match=r"other settings \(image.quality 90, now 80\)"):
        run(images, tmp_path / "data", quality=80)
    more = shutil.copytree(images, tmp_path / "more")
    shutil.copy(more / "class_00/00.png", more / "class_00/new.png")
    with pytest.raises(UsageError, match="made from other images"):
        run(more, tmp_path / "data")
    assert content(tmp_path / "data") == before

    run(images, tmp_path / "other", quality=80)
    assert run(images, tmp_path / "data", quality=80, overwrite=True).images_reused == 0
    assert content(tmp_path / "data") == content(tmp_path / "other")


def test_an_image_replaced_in_between_is_read_again(images, tmp_path, monkeypatch):
    copy = shutil.copytree(images, tmp_path / "images")
    fail_after(monkeypatch, 4)
    with pytest.raises(MemoryError):
        run(copy, tmp_path / "data")
    monkeypatch.undo()
    path = copy / "class_02/03.png"
    data = bytearray(path.read_bytes())
    path.write_bytes((copy / "class_02/02.png").read_bytes()[: len(data)].ljust(len(data), b"\0"))
    run(copy, tmp_path / "data")
    run(copy, tmp_path / "unbroken")
    assert content(tmp_path / "data") == content(tmp_path / "unbroken")


def test_finished_data_set_is_left_alone(images, data_set):
    before = {path: path.stat().st_mtime_ns for path in data_set.iterdir()}
    outcome = run(images, data_set)
    assert outcome.info == index.load_info(str(data_set))
    assert (outcome.images_read, outcome.images_reused) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in data_set.iterdir()} == before


def test_a_shard_that_lost_its_end_is_made_again(images, data_set, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("as if killed")

    monkeypatch.setattr(commit, "commit", fail)
    with pytest.raises(MemoryError):
        run(images, tmp_path / "data")
    monkeypatch.undo()
    os.truncate(tmp_path / "data/toy-train.tfrecord-00001-of-00003", 1000)
    run(images, tmp_path / "data")
    assert content(tmp_path / "data") == content(data_set)


def test_a_second_job_is_kept_out(images, tmp_path, monkeypatch):
    def start_another(*_, **__):
        run(images, tmp_path / "data")

    monkeypatch.setattr(commit, "commit", start_another)
    with pytest.raises(UsageError, match="another process is writing there"):
        run(images, tmp_path / "data")


def test_a_finished_data_set_that_is_about_to_be_made_anew(images, data_set, tmp_path, monkeypatch):
    """A repeated command without --overwrite does nothing and does not disturb the other job."""
    output = shutil.copytree(data_set, tmp_path / "data")
    make_listing, jobs = listing.make_listing, []

    def another_before(*arguments):
        jobs.append(1)
        if len(jobs) == 1:
            run(images, output)
            assert (output / ".work/lock").exists()
        return make_listing(*arguments)

    monkeypatch.setattr(listing, "make_listing", another_before)
    run(images, output, overwrite=True)
    assert len(jobs) == 2
    assert content(output) == content(data_set)
    # The leftovers of a job that was killed at its very end are removed.
    (output / ".work").mkdir()
    (output / ".work/plan.json").write_text("{}")
    run(images, output)
    assert not (output / ".work").exists()


def test_two_commands_at_once(photos, unbroken, tmp_path):
    arguments = [f"--input={photos}", f"--output={tmp_path / 'data'}", *PHOTO_SETTINGS]
    jobs = [start(arguments, log=tmp_path / f"log{i}") for i in range(2)]
    for job in jobs:
        job.join(120)
    codes = sorted(job.exitcode for job in jobs)
    logs = [(tmp_path / f"log{i}").read_text() for i in range(2)]
    assert codes == [0, 2], logs
    assert any("error: output" in log and "another process is writing" in log for log in logs)
    assert content(tmp_path / "data") == content(unbroken)


def test_a_worker_whose_job_was_overtaken_stops(images, tmp_path, monkeypatch):
    """A worker stops when the output has the plan of another job.

    A worker on another machine does not see the lock.
    """
    write_shard = shards.write_shard

    def overtaken(task, *, claim, **arguments):
        Claim(claim.output, {**claim.content, "num_shards": 99}).take(replaces=None)
        return write_shard(task, claim=claim, **arguments)

    monkeypatch.setattr("pipeline.preprocess.writing.write_shard", overtaken)
    with pytest.raises(UsageError, match="another job has begun to write there"):
        run(images, tmp_path / "data")
    assert not list((tmp_path / "data").glob("toy-*"))
