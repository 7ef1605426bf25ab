"""A data set gives the same pixels from a disk, staged, streamed or held in memory."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.cloud.clients import client_of
from tests.fixtures.cloud.emulators import Emulator, go_emulator
from tests.fixtures.cloud.faults import PASSED, RESET, FaultyProxy, Request, Rule, cut, status
from tests.fixtures.cloud.tensorflow_bridge import tensorflow_bridge
from tests.fixtures.project import ROOT

BUCKET = "sets"
STREAMED = rf"^/{BUCKET}/.*tfrecord"  # the URL by which TensorFlow, not google-cloud-storage, reads
STEPS, CLASSES, IMAGES = 5, 4, 2
ROWS = STEPS * CLASSES * IMAGES
LITTLE = 2**16

# Like the commands, the child process sets up the environment before it imports TensorFlow.
CHILD = """
import sys
from tripletmill.cli import notices
notices.import_tensorflow()
from tests.trainer.data import test_reading_from_buckets
test_reading_from_buckets.stream(*sys.argv[1:])
"""


def batches(reading, data_dir: str) -> dict[str, np.ndarray]:
    """Images, labels and fallbacks of all steps, and the shards of the rows in the plan."""
    from trainer.data.augmentation import Augmentation
    from trainer.data.batch_plan import BatchPlan
    from trainer.data.input_pipeline import train_batches

    index = reading.open(data_dir, "train")
    plan = BatchPlan(index, classes_per_batch=CLASSES, images_per_class=IMAGES, seed=3)
    data = train_batches(
        index,
        plan,
        reading.records(index),
        first_step=0,
        num_steps=STEPS,
        image_size=24,
        augmentation=Augmentation(),
    )
    parts = zip(*([part.numpy() for part in batch] for batch in data), strict=True)
    found = dict(zip(("images", "labels", "fallbacks"), map(np.concatenate, parts), strict=True))
    rows = [plan.batch(step).ravel() for step in range(STEPS)]
    return {**found, "shards": index.shard[np.concatenate(rows)]}


def stream(data_dir: str, out: str) -> None:
    """Reads batches from a bucket and saves them; child processes call it."""
    from trainer.data.reading import Reading

    found: dict[str, Any] = batches(Reading(stream=True), data_dir)
    np.savez(out, **found)


def streamed(proxy: FaultyProxy, folder: Path, **environment: str) -> dict[str, np.ndarray]:
    """Batches of a child process whose TensorFlow reads through the proxy."""
    out = folder / "batches.npz"
    with tensorflow_bridge(proxy.url) as bridge:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, f"gs://{BUCKET}/data", str(out)],
            cwd=ROOT,
            env={**os.environ, **proxy.environment(), **bridge.environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
    assert done.returncode == 0, done.stdout
    return dict(np.load(out))


class Ranges(FaultyProxy):
    """Notes how many bytes TensorFlow asks for in each request for a shard."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.asked: list[int] = []

    def forward(self, request, message):
        if request.path.startswith(f"/{BUCKET}/"):
            first, last = message.header("range").removeprefix("bytes=").split("-")
            self.asked.append(int(last) - int(first) + 1)
        return super().forward(request, message)


def upload(emulator: Emulator, data_dir: Path) -> None:
    for path in data_dir.iterdir():
        if path.is_file():
            emulator.put(BUCKET, f"data/{path.name}", path.read_bytes())


@pytest.fixture(scope="module")
def emulator(data_dir):
    with go_emulator() as found:
        found.make_bucket(BUCKET)
        upload(found, data_dir)
        yield found


@pytest.fixture(scope="module")
def expected(data_dir) -> dict[str, np.ndarray]:
    from trainer.data.reading import Reading

    return batches(Reading(), str(data_dir))


def require_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert not found["fallbacks"].any()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], name)


def shard_requests(proxy: FaultyProxy) -> int:
    return sum("tfrecord" in request.name for _, request in proxy.log)


def test_on_a_disk_as_it_is(data_dir, expected, tmp_path):
    from trainer.data.reading import Reading
    from tripletmill.formats.index import load_index

    index = load_index(str(data_dir), "train")
    for reading in (Reading(), Reading(folder=str(tmp_path), stream=True)):
        assert reading.bring(index) is index
        assert {Path(shard).parent for shard in reading.open(str(data_dir), "train").shards} == {
            data_dir
        }
    assert not list(tmp_path.iterdir())
    assert expected["images"].shape == (ROWS, 24, 24, 3)
    assert len(np.unique(expected["images"], axis=0)) > ROWS / 2
    require_same(batches(Reading(cache=True), str(data_dir)), expected)


def test_staged(emulator, expected, monkeypatch, tmp_path):
    from trainer.data.reading import Reading

    monkeypatch.setenv("HOME", str(tmp_path))
    with FaultyProxy(emulator.url) as proxy, client_of(proxy, monkeypatch):
        data_dir = f"gs://{BUCKET}/data"
        require_same(batches(Reading(folder="~/here"), data_dir), expected)
        shards = Reading(folder="~/here").open(data_dir, "train").shards
        assert {Path(shard).parents[1] for shard in shards} == {tmp_path / "here"}
        assert shard_requests(proxy) == len(shards)
        require_same(batches(Reading(folder="~/here", cache=True), data_dir), expected)
        assert shard_requests(proxy) == len(shards)


def test_streamed_into_memory(emulator, expected, monkeypatch, tmp_path):
    """Each shard is read, and none is left on the disk."""
    from trainer.data.reading import READ_AHEAD, Reading

    monkeypatch.setenv(READ_AHEAD, "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with FaultyProxy(emulator.url) as proxy, client_of(proxy, monkeypatch):
        require_same(batches(Reading(stream=True, cache=True), f"gs://{BUCKET}/data"), expected)
    assert not list(tmp_path.iterdir())


def test_streamed(emulator, expected, tmp_path):
    """Each record takes one small request."""
    with Ranges(emulator.url) as proxy:
        require_same(streamed(proxy, tmp_path), expected)
    assert len(proxy.asked) == ROWS
    assert max(proxy.asked) <= LITTLE


def test_streamed_with_faults_in_between(emulator, expected, tmp_path):
    """The user's own setting is kept, with which read-ahead holds no whole record."""
    rules = [
        Rule(status(503), path=STREAMED, every=15),
        Rule(RESET, path=STREAMED, every=16),
        Rule(cut(), path=STREAMED, every=17),
    ]
    with Ranges(emulator.url, rules) as proxy:
        require_same(streamed(proxy, tmp_path, GCS_READAHEAD_BUFFER_SIZE_BYTES="100"), expected)
    assert min(proxy.asked) == 100
    for kind in ("503", "reset", "cut"):
        assert proxy.counts[kind] > 1, kind


def test_a_shard_that_vanishes(data_dir, emulator, expected, tmp_path):
    """From then on its records count as damaged, and fallbacks take their places."""
    lost = min(data_dir.glob("*-train.tfrecord*"))
    seen = []

    def remove(request: Request) -> None:
        seen.extend(["tfrecord" in request.name] if request.path.startswith(f"/{BUCKET}/") else [])
        if sum(seen) == ROWS // 3:
            with emulator.client() as client:
                blob = client.bucket(BUCKET).blob(f"data/{lost.name}")
                with contextlib.suppress(Exception):
                    blob.delete(retry=None)

    try:
        with FaultyProxy(emulator.url, remove) as proxy:
            found = streamed(proxy, tmp_path)
    finally:
        upload(emulator, data_dir)
    assert proxy.counts == {PASSED: len(proxy.log)}
    replaced = found["fallbacks"] > 0
    assert replaced.any()
    assert not replaced[: CLASSES * IMAGES].all()
    assert set(found["shards"][replaced]) == {0}
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_array_equal(found["images"][~replaced], expected["images"][~replaced])
    assert (found["images"][replaced] != expected["images"][replaced]).any(axis=(1, 2, 3)).all()


def test_wrong_values(emulator, monkeypatch, tmp_path):
    from trainer.data.reading import READ_AHEAD, Reading, checked
    from tripletmill.errors import UsageError

    with pytest.raises(UsageError, match=r"^Reading\.damaged 'skip': 'stop' or 'replace'$"):
        Reading(damaged="skip")
    with pytest.raises(UsageError, match=r"^train\.reading: @Reading\(\), not 'gs'$"):
        checked("gs", "train.reading")  # type: ignore[arg-type]
    assert checked(None, "train.reading") == Reading()
    with pytest.raises(UsageError, match="no such folder"):
        Reading().open(str(tmp_path / "none"), "train")
    with FaultyProxy(emulator.url) as proxy, client_of(proxy, monkeypatch):
        data_dir = f"gs://{BUCKET}/data"
        with pytest.raises(UsageError, match="no split 'other', only t"):
            Reading().open(data_dir, "other")
        with pytest.raises(UsageError, match="only local paths"):
            Reading(folder="gs://sets/cache").open(data_dir, "train")
        monkeypatch.delenv(READ_AHEAD, raising=False)
        with pytest.raises(UsageError, match=f"^Reading.stream: without {READ_AHEAD}=65536"):
            Reading(stream=True).open(data_dir, "train")
        for name in (READ_AHEAD, "GCS_READ_CACHE_BLOCK_SIZE_MB"):
            with monkeypatch.context() as patched:
                patched.setenv(name, "1")
                index = Reading(stream=True).open(data_dir, "train")
                assert all(shard.startswith(data_dir) for shard in index.shards)
