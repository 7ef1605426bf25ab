"""Tests of the stand-ins for Cloud Storage, and of how Beam and TensorFlow reach them."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import requests
from google.api_core.exceptions import NotFound, PreconditionFailed, ServiceUnavailable
from google.cloud.storage.retry import DEFAULT_RETRY

from preprocessing.records import RecordWriter
from tests.fixtures.cloud.emulators import Emulator, go_emulator, python_emulator
from tests.fixtures.cloud.faults import (
    DOWNLOAD,
    HANG,
    LOSE_ANSWER,
    PASSED,
    RESET,
    UPLOAD,
    FaultyProxy,
    Request,
    Rule,
    cut,
    slow,
    status,
)
from tests.fixtures.cloud.metadata import metadata_server
from tests.fixtures.cloud.tensorflow_bridge import tensorflow_bridge
from tests.fixtures.project import ROOT

RETRY = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.05).with_timeout(10)
DATA = bytes(range(256)) * 1200
PART = 256 * 1024  # size of one part of a resumable upload; DATA takes two parts
BUCKET = "bucket"
NAMES = ["a b+c", "sub/ü/é", "x\ny", "😀", "n" * 1000]


@pytest.fixture(scope="module")
def go() -> Iterator[Emulator]:
    with go_emulator() as emulator:
        emulator.make_bucket(BUCKET)
        yield emulator


@pytest.fixture(scope="module")
def python() -> Iterator[Emulator]:
    with python_emulator() as emulator:
        emulator.make_bucket(BUCKET)
        yield emulator


@pytest.fixture(params=["go", "python"])
def emulator(request) -> Emulator:
    return request.getfixturevalue(request.param)


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_objects_come_and_go(emulator):
    for name in ["dir/empty", *(f"dir/{name}" for name in NAMES)]:
        emulator.put(BUCKET, name, name.encode() * (name != "dir/empty"))
    assert emulator.names(BUCKET, "dir/") == sorted(["dir/empty", *(f"dir/{n}" for n in NAMES)])
    assert emulator.get(BUCKET, "dir/empty") == b""
    for name in NAMES:
        assert emulator.get(BUCKET, f"dir/{name}") == f"dir/{name}".encode()
    with emulator.client() as client:
        listing = client.list_blobs(BUCKET, prefix="dir/", delimiter="/")
        assert len(list(listing)) == len(NAMES)
        assert listing.prefixes == {"dir/sub/"}
        for name in emulator.names(BUCKET, "dir/"):
            client.bucket(BUCKET).blob(name).delete()
    assert emulator.names(BUCKET, "dir/") == []
    with pytest.raises(NotFound):
        emulator.get(BUCKET, "dir/empty")


def test_ranges_and_checksums(emulator):
    emulator.put(BUCKET, "ranges", DATA)
    with emulator.client() as client:
        blob = client.bucket(BUCKET).get_blob("ranges")
        assert blob.size == len(DATA)
        assert blob.download_as_bytes(checksum="md5") == DATA
        with blob.open("rb", chunk_size=10_000) as file:
            file.seek(-5, os.SEEK_END)
            assert file.read() == DATA[-5:]
            file.seek(9_990)
            assert file.read(20) == DATA[9_990:10_010]


def test_a_generation_is_replaced_by_who_knows_it(go):
    with go.client() as client:
        blob = client.bucket(BUCKET).blob("generations")
        blob.upload_from_string("first", if_generation_match=0)
        first = blob.generation
        for other in (0, first + 1):
            with pytest.raises(PreconditionFailed):
                blob.upload_from_string("lost", if_generation_match=other)
        assert go.get(BUCKET, "generations") == b"first"
        blob.upload_from_string("second", if_generation_match=first)
        assert blob.generation != first
    assert go.get(BUCKET, "generations") == b"second"


@pytest.mark.parametrize(
    "fault", [status(429), status(500), status(503), RESET, LOSE_ANSWER, slow(0.1)]
)
def test_uploads_are_tried_again(emulator, fault):
    rules = [Rule(fault, path=UPLOAD, first=2)]
    with FaultyProxy(emulator.url, rules) as proxy, proxy.client() as client:
        client.bucket(BUCKET).blob("upload").upload_from_string(DATA, retry=RETRY)
        if fault.kind == "slow":
            client.bucket(BUCKET).blob("upload").upload_from_string(DATA, retry=RETRY)
            assert proxy.counts == {"slow": 2}
        else:
            assert proxy.counts == {fault.kind: 2, PASSED: 1}
    assert emulator.get(BUCKET, "upload") == DATA


@pytest.mark.parametrize("fault", [status(503), RESET, LOSE_ANSWER, cut(1000), cut()])
def test_downloads_are_tried_again(emulator, fault):
    emulator.put(BUCKET, "download", DATA)
    rules = [Rule(fault, path=DOWNLOAD, first=2)]
    with FaultyProxy(emulator.url, rules) as proxy, proxy.client() as client:
        assert client.bucket(BUCKET).blob("download").download_as_bytes(retry=RETRY) == DATA
        assert proxy.counts == {fault.kind: 2, PASSED: 1}


def test_a_cut_needs_something_to_cut(go):
    go.put(BUCKET, "short", b"12345")
    with FaultyProxy(go.url, [Rule(cut(5))]) as proxy, proxy.client() as client:
        assert client.bucket(BUCKET).blob("short").download_as_bytes() == b"12345"
        assert proxy.counts == {PASSED: 1}


def test_an_upload_whose_answer_is_lost_meets_itself(go):
    """The client's second attempt finds the object that its first attempt created."""
    with FaultyProxy(go.url, [Rule(LOSE_ANSWER, first=1)]) as proxy, proxy.client() as client:
        blob = client.bucket(BUCKET).blob("lost")
        with pytest.raises(PreconditionFailed):
            blob.upload_from_string(DATA, if_generation_match=0, retry=RETRY)
        assert proxy.counts == {"lose_answer": 1, PASSED: 1}
    assert go.get(BUCKET, "lost") == DATA


def test_who_hangs_is_given_up(go):
    with FaultyProxy(go.url, [Rule(HANG, first=1)]) as proxy, proxy.client() as client:
        blob = client.bucket(BUCKET).blob("hang")
        with pytest.raises(requests.exceptions.ReadTimeout):
            blob.upload_from_string("x", timeout=1, retry=None)
        blob.upload_from_string("y", timeout=30, retry=None)
        assert proxy.counts == {"hang": 1, PASSED: 1}
    assert go.get(BUCKET, "hang") == b"y"


def test_what_the_emulator_hands_out_leads_through_the_proxy(emulator):
    """The URLs of upload parts and of media downloads must point to the proxy."""
    rules = [
        Rule(status(503), method="PUT", name="^parts$", skip=1, first=1),
        Rule(status(503), path=DOWNLOAD, first=1),
    ]
    with FaultyProxy(emulator.url, rules) as proxy, proxy.client() as client:
        blob = client.bucket(BUCKET).blob("parts", chunk_size=PART)
        blob.upload_from_file(io.BytesIO(DATA), retry=RETRY)
        assert [(kind, request.method) for kind, request in proxy.log] == [
            (PASSED, "POST"),
            (PASSED, "PUT"),
            ("503", "PUT"),
            *([(PASSED, "PUT")] * (len(proxy.log) - 3)),
        ]
        assert {request.name for _, request in proxy.log} == {"parts"}
        found = client.bucket(BUCKET).get_blob("parts")
        assert found.media_link.startswith(proxy.url)
        assert found.download_as_bytes(retry=RETRY) == DATA
        assert proxy.counts["503"] == 2


def test_rules_pick_the_same_requests_every_time():
    uploads = [Request("POST", "/upload/", name) for name in "abababab"]

    def hits(**options):
        rule = Rule(RESET, **options)
        return [i for i, request in enumerate(uploads) if rule(request)]

    assert hits() == [*range(8)]
    assert hits(first=2) == [0, 1]
    assert hits(first=2, per_object=True) == [0, 1, 2, 3]
    assert hits(every=3) == [2, 5]
    assert hits(skip=5) == [5, 6, 7]
    assert hits(skip=1, first=4, every=2) == [2, 4]
    assert hits(name="b", first=1) == [1]
    assert hits(method="GET|PUT") == hits(path="^/download/") == []


def test_an_earlier_rule_takes_a_request_from_the_later_ones(go):
    rules = [Rule(RESET, first=1), Rule(status(503), first=1)]
    with FaultyProxy(go.url, rules) as proxy, proxy.client() as client:
        client.bucket(BUCKET).blob("both").upload_from_string("x", retry=RETRY)
        assert [kind for kind, _ in proxy.log] == ["reset", "503", PASSED]


def test_rules_may_be_a_function(go):
    def rules(request):
        return status(503) if request.size > 1000 else None

    with FaultyProxy(go.url, rules) as proxy, proxy.client() as client:
        client.bucket(BUCKET).blob("small").upload_from_string("x", retry=None)
        with pytest.raises(ServiceUnavailable, match="FaultyProxy"):
            client.bucket(BUCKET).blob("large").upload_from_string(DATA, retry=None)
        assert proxy.counts == {PASSED: 1, "503": 1}


def test_no_server_outlives_a_process_that_is_killed():
    code = """
from tests.fixtures.cloud.emulators import go_emulator, python_emulator
from tests.fixtures.cloud.tensorflow_bridge import tensorflow_bridge
with go_emulator() as go, python_emulator() as python, tensorflow_bridge(go.url) as bridge:
    print(go.port, python.port, bridge.port, flush=True)
    input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as test:
        assert test.stdout is not None
        ports = [int(port) for port in test.stdout.readline().split()]
        assert len(ports) == 3
        assert all(map(answers, ports))
        test.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(answers, ports)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_beam_reads_writes_renames_and_deletes(python):
    code = f"""
from apache_beam.io.filesystems import FileSystems
with FileSystems.create("gs://{BUCKET}/beam/new") as file:
    file.write(b"beam")
FileSystems.rename(["gs://{BUCKET}/beam/new"], ["gs://{BUCKET}/beam/renamed"])
[found] = FileSystems.match(["gs://{BUCKET}/beam/*"])
print([(item.path, item.size_in_bytes) for item in found.metadata_list])
print(FileSystems.open("gs://{BUCKET}/beam/renamed").read())
FileSystems.delete(["gs://{BUCKET}/beam/renamed"])
"""
    with metadata_server() as metadata:
        done = run(code, {**python.environment(), **metadata.environment()})
    assert done.stdout == f"[('gs://{BUCKET}/beam/renamed', 4)]\nb'beam'\n"
    assert "credentials" not in done.stderr
    assert "googleapis.com" not in done.stderr  # no other server was asked
    assert python.names(BUCKET, "beam/") == []


def test_tensorflow_reads_and_writes(go):
    file = io.BytesIO()
    with RecordWriter(file) as writer:
        for text in ("one", "two"):
            writer.write(text.encode())
    go.put(BUCKET, "tf/a.tfrecord", file.getvalue())
    code = f"""
import tensorflow as tf
print(tf.io.gfile.glob("gs://{BUCKET}/tf/*"), tf.io.gfile.exists("gs://{BUCKET}/tf/b"))
print([*tf.data.TFRecordDataset("gs://{BUCKET}/tf/a.tfrecord").as_numpy_iterator()])
tf.io.gfile.makedirs("gs://{BUCKET}/tf/run")
tf.io.write_file("gs://{BUCKET}/tf/run/b", "b" * 100_000)
"""
    rules = [Rule(status(503), path=DOWNLOAD, first=2), Rule(status(503), path=UPLOAD, first=1)]
    with FaultyProxy(go.url, rules) as proxy, tensorflow_bridge(proxy.url) as bridge:
        done = run(code, bridge.environment())
        assert proxy.counts["503"] == 3
    assert done.stdout == f"['gs://{BUCKET}/tf/a.tfrecord'] False\n[b'one', b'two']\n"
    assert go.names(BUCKET, "tf/") == ["tf/a.tfrecord", "tf/run/", "tf/run/b"]
    assert go.get(BUCKET, "tf/run/b") == b"b" * 100_000
