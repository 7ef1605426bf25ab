"""Jobs that read and write gs://, with a live emulator that tracks object generations."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocessing.sources.trees import open_tree
from tests.fixtures.cloud.clients import client_of
from tests.fixtures.cloud.emulators import go_emulator
from tests.fixtures.cloud.faults import (
    DOWNLOAD,
    LOSE_ANSWER,
    RESET,
    UPLOAD,
    FaultyProxy,
    Rule,
    cut,
    slow,
    status,
)
from tests.fixtures.cloud.tensorflow_bridge import tensorflow_bridge
from tests.fixtures.folders import class_folder
from tests.fixtures.jobs import SETTINGS, command, content, run, start
from tripletmill.errors import UsageError
from tripletmill.formats.index import load_index
from tripletmill.storage import bucket as bucket_storage

BUCKET = "pictures"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = class_folder(tmp_path_factory.mktemp("input") / "images", classes=6, images=5)
    (root / "class_00" / "broken.jpg").write_bytes(b"no image")
    (root / "class_01" / "copy #1?.png").write_bytes((root / "class_01/00.png").read_bytes())
    return root


@pytest.fixture(scope="module")
def emulator(images):
    with go_emulator() as found:
        found.make_bucket(BUCKET)
        for path in images.rglob("*"):
            if path.is_file():
                name = f"images/{path.relative_to(images)}"
                found.put(BUCKET, name, path.read_bytes())
        yield found


@pytest.fixture(scope="module")
def local(images, tmp_path_factory) -> dict[str, str]:
    """The files that a local job writes."""
    output = tmp_path_factory.mktemp("local") / "data"
    run(images, output)
    return content(output)


@pytest.fixture(scope="module")
def from_bucket(emulator, tmp_path_factory) -> dict[str, str]:
    """The files that a job writes to a local disk when it reads the bucket.

    They differ from those of `local`: the input's fingerprint is made of checksums.
    """
    folder = tmp_path_factory.mktemp("from_bucket")
    job(emulator, f"gs://{BUCKET}/images", folder / "data", log=folder / "log")
    return content(folder / "data")


def begin(endpoint, input, output, *flags, log):
    arguments = [f"--input={input}", f"--output={output}", *SETTINGS, *flags]
    return start(arguments, log=log, environment=endpoint.environment())


def job(endpoint, input, output, *flags, log):
    process = begin(endpoint, input, output, *flags, log=log)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


def objects(emulator, folder):
    """The SHA-256 of every object below a folder, by name."""
    return {
        name.removeprefix(f"{folder}/"): hashlib.sha256(emulator.get(BUCKET, name)).hexdigest()
        for name in emulator.names(BUCKET, f"{folder}/")
    }


def test_output_in_a_bucket(emulator, images, local, tmp_path):
    said = job(emulator, images, f"gs://{BUCKET}/one", log=tmp_path / "log")
    assert objects(emulator, "one") == local
    assert f"data set toy in gs://{BUCKET}/one" in said
    again = job(emulator, images, f"gs://{BUCKET}/one/", log=tmp_path / "again")
    assert "left out: 1 files" in again
    assert objects(emulator, "one") == local


def test_input_in_a_bucket(emulator, local, from_bucket):
    different = {name for name in local if local[name] != from_bucket[name]}
    assert from_bucket.keys() == local.keys()
    assert different == {"dataset_info.json"}  # it holds the fingerprint of the input


def test_both_in_a_bucket(emulator, from_bucket, tmp_path):
    job(emulator, f"gs://{BUCKET}/images/", f"gs://{BUCKET}/both", log=tmp_path / "log")
    assert objects(emulator, "both") == from_bucket


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_list_in_a_bucket(emulator, images, tmp_path, suffix):
    rows = [
        {"path": f"../images/{p.relative_to(images)}", "label": p.parent.name, "shot": str(i)}
        for i, p in enumerate(sorted(images.rglob("0*.png")))
    ]
    rows[0]["path"] = f"gs://{BUCKET}/images/class_00/00.png"
    lines = [json.dumps(row) for row in rows]
    if suffix == "csv":
        lines = ["path,label,shot", *(",".join(row.values()) for row in rows)]
    emulator.put(BUCKET, f"lists/list.{suffix}", "\n".join(lines).encode())
    output = f"gs://{BUCKET}/list_{suffix}"
    said = job(emulator, f"gs://{BUCKET}/lists/list.{suffix}", output, log=tmp_path / "log")
    assert "left out: nothing" in said
    info = json.loads(emulator.get(BUCKET, f"list_{suffix}/dataset_info.json"))
    assert sum(int(n) for s in info["splits"] for n in s["shardLengths"]) == len(rows)


@pytest.mark.slow
def test_killed_and_run_again(emulator, images, local, tmp_path):
    moments = random.Random(1)
    output, log = f"gs://{BUCKET}/killed", tmp_path / "log"

    def finished():
        return {n for n in emulator.names(BUCKET, "killed/.work/") if n.endswith("sidecar.parquet")}

    with FaultyProxy(emulator.url, [Rule(slow(0.3), path=UPLOAD)]) as late:
        for attempt in range(6):
            before = finished()
            process = begin(late, images, output, log=log)
            deadline = time.monotonic() + 60
            while attempt % 2 and finished() <= before and time.monotonic() < deadline:
                time.sleep(0.02)
            process.join(moments.uniform(0, 0.4 if attempt % 2 else 2))
            assert process.exitcode is None, log.read_text()
            process.kill()
            process.join()
            assert before <= finished()
    assert 1 <= len(finished()) < 5
    said = job(emulator, images, output, log=tmp_path / "last")
    assert "images lay in finished shards" in said
    assert objects(emulator, "killed") == local


@pytest.mark.slow
def test_requests_that_fail_in_between(emulator, from_bucket, tmp_path):
    rules = [
        Rule(status(503), path=UPLOAD, first=1, per_object=True),
        Rule(LOSE_ANSWER, path=UPLOAD, name="tfrecord|info|plan", first=1, per_object=True),
        Rule(cut(100), path=DOWNLOAD, every=7),
        Rule(RESET, every=11),
        Rule(status(429), every=13),
        Rule(status(500), every=17),
        Rule(slow(0.2), every=19),
    ]
    with FaultyProxy(emulator.url, rules) as proxy:
        job(proxy, f"gs://{BUCKET}/images", f"gs://{BUCKET}/faults", log=tmp_path / "log")
    for kind in ("503", "lose_answer", "cut", "reset", "429", "500", "slow"):
        assert proxy.counts[kind] > 0, kind
    assert objects(emulator, "faults") == from_bucket


def test_a_network_that_stays_down(emulator, images, tmp_path):
    with FaultyProxy(
        emulator.url, [Rule(status(403), name="class_", path=DOWNLOAD, skip=8)]
    ) as proxy:
        output = f"gs://{BUCKET}/down"
        process = begin(proxy, f"gs://{BUCKET}/images", output, log=tmp_path / "log")
        process.join(120)
    assert process.exitcode == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("error: gs://pictures/images/class_")
    assert "Cloud Storage: " in last
    assert "403" in last
    assert "dataset_info.json" not in objects(emulator, "down")


def test_a_network_that_is_down_at_the_end(emulator, images, tmp_path):
    """No image is to blame; the error of a worker is printed as one line."""
    with FaultyProxy(emulator.url, [Rule(status(403), name="sidecar", path=DOWNLOAD)]) as proxy:
        output = f"gs://{BUCKET}/down_later"
        process = begin(proxy, f"gs://{BUCKET}/images", output, log=tmp_path / "log")
        process.join(120)
    assert process.exitcode == 2
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    last = log.splitlines()[-1]
    assert last.startswith("error: the job failed: ")
    assert "Cloud Storage: 403" in last
    assert last.endswith("; the same command goes on from the finished shards")


@pytest.mark.parametrize(
    ("input", "output", "message"),
    [
        ("gs://nowhere-at-all/images", "{tmp}/data", "no such file or folder"),
        ("gs://pictures/nothing", "{tmp}/data", "no such file or folder"),
        ("gs://pictures/images/class_00", "{tmp}/data", "no class folders in it"),
        ("{images}", "gs://nowhere-at-all/data", "nowhere-at-all/data"),
        ("{images}", "gs://pictures/images", "not empty, and no data set of tripletmill"),
        ("gs://pictures/images", "gs://pictures/images/data", "lies in the input"),
    ],
)
def test_errors_of_use(emulator, images, tmp_path, input, output, message):
    input, output = (text.format(tmp=tmp_path, images=images) for text in (input, output))
    process = begin(emulator, input, output, log=tmp_path / "log")
    process.join(60)
    assert process.exitcode == 2
    [line] = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_no_credentials(tmp_path):
    environment = {**os.environ, "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}
    done = command("--input=gs://pictures/x", "--output=o", env=environment)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "no credentials found" in line


def test_two_jobs_at_once(emulator, images, local, tmp_path):
    """Two jobs with one plan may both write: all bytes are equal, and none is written twice."""
    output = f"gs://{BUCKET}/two"
    with FaultyProxy(emulator.url, [Rule(slow(0.2), path=UPLOAD)]) as late:
        jobs = [begin(late, images, output, log=tmp_path / f"log{i}") for i in range(2)]
        for process in jobs:
            process.join(120)
    logs = [(tmp_path / f"log{i}").read_text() for i in range(2)]
    codes = [process.exitcode for process in jobs]
    assert 0 in codes, logs
    assert set(codes) <= {0, 2}, logs
    for code, log in zip(codes, logs, strict=True):
        assert (code == 2) == ("error: " in log.splitlines()[-1])
        assert "Traceback" not in log
    assert objects(emulator, "two") == local


def test_two_different_jobs_at_once(emulator, images, local, tmp_path):
    """One job takes the output; the other one stops before it writes a shard."""
    output = f"gs://{BUCKET}/different"
    other = "--gin_param=preprocess.quality = 50"
    run(images, tmp_path / "other", quality=50)
    with FaultyProxy(emulator.url, [Rule(slow(0.2), path=UPLOAD)]) as late:
        jobs = [
            begin(late, images, output, log=tmp_path / "log0"),
            begin(late, images, output, other, log=tmp_path / "log1"),
        ]
        for process in jobs:
            process.join(120)
    logs = [(tmp_path / f"log{i}").read_text() for i in range(2)]
    assert sorted(process.exitcode for process in jobs) == [0, 2], logs
    loser = logs[0 if jobs[0].exitcode else 1]
    assert "another job has begun" in loser or "with other settings" in loser
    expected = content(tmp_path / "other") if jobs[0].exitcode else local
    assert objects(emulator, "different") == expected


@pytest.mark.slow
def test_overwritten_while_it_runs(emulator, images, tmp_path):
    """A job that starts anew in the output of a running job ends as if it were alone."""
    run(images, tmp_path / "other", quality=50)
    output = f"gs://{BUCKET}/taken"
    with FaultyProxy(emulator.url, [Rule(slow(2.0), path=UPLOAD)]) as late:
        first = begin(late, images, output, log=tmp_path / "log0")
        deadline = time.monotonic() + 60
        while not emulator.names(BUCKET, "taken/toy-") and time.monotonic() < deadline:
            time.sleep(0.02)
        flags = ["--overwrite", "--gin_param=preprocess.quality = 50"]
        job(emulator, images, output, *flags, log=tmp_path / "log1")
        first.join(120)
    assert first.exitcode == 2
    # The first job notices this before its next shard, in the middle of a shard that the other job
    # has written meanwhile, or after that shard.
    line = (tmp_path / "log0").read_text().splitlines()[-1]
    assert "another job has" in line or "is incomplete; run the same command again" in line
    found = objects(emulator, "taken")
    # A sidecar that was being written when the other job finished may be left over; nothing reads
    # it.
    left = {name for name in found if name.startswith(".work/")}
    assert len(left) <= 1
    assert {n: found[n] for n in found.keys() - left} == content(tmp_path / "other")


def test_tensorflow_reads_it(emulator, images, tmp_path):
    output = f"gs://{BUCKET}/for_tensorflow"
    job(emulator, images, output, log=tmp_path / "log")
    program = f"""
import tensorflow as tf
files = sorted(tf.io.gfile.glob("{output}/toy-*.tfrecord-*"))
records = tf.data.TFRecordDataset(files)
features = {{"image/encoded": tf.io.FixedLenFeature([], tf.string)}}
images = [tf.io.decode_jpeg(tf.io.parse_single_example(r, features)["image/encoded"])
          for r in records]
print(len(files), len(images), min(min(i.shape[:2]) for i in images))
"""
    with tensorflow_bridge(emulator.url) as bridge:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**os.environ, **bridge.environment()},
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "31", "32"]


def test_a_slash_too_many_in_a_name(emulator, monkeypatch):
    for name in ("slashes/dog/1.png", "slashes//dog/2.png", "slashes//3.png"):
        emulator.put(BUCKET, name, b"")
    with client_of(emulator, monkeypatch):
        tree = open_tree(f"gs://{BUCKET}/slashes")
        assert tree.folders("") == (["dog"], [("/", "folder without a name")])


def test_an_object_that_is_not_there(emulator, monkeypatch):
    with client_of(emulator, monkeypatch):
        for ask in (lambda file: file.seek(5), lambda file: file.read(1)):
            file = bucket_storage.open_read(f"gs://{BUCKET}/nothing")
            with pytest.raises(FileNotFoundError):
                ask(file)
        with pytest.raises(UsageError, match="nothing: no such folder"):
            load_index(f"gs://{BUCKET}/nothing", "train")


def test_a_server_that_hangs_is_given_up(emulator, monkeypatch):
    from tests.fixtures.cloud.faults import HANG

    monkeypatch.setattr(bucket_storage, "TIMEOUT_SECONDS", (1, 0.2))
    monkeypatch.setattr(bucket_storage, "RETRY_SECONDS", 5.0)
    with (
        FaultyProxy(emulator.url, [Rule(HANG)]) as proxy,
        client_of(proxy, monkeypatch),
        pytest.raises(OSError, match="Cloud Storage: "),
    ):
        bucket_storage.read(f"gs://{BUCKET}/images/class_00/00.png")
    assert proxy.counts["hang"] > 1
