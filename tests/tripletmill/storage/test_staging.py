"""Shards are copied from a bucket to a local disk, with a live emulator and with faults."""

import builtins
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import google_crc32c
import pytest

from tests.fixtures.cloud.clients import client_of
from tests.fixtures.cloud.emulators import go_emulator
from tests.fixtures.cloud.faults import DOWNLOAD, HANG, RESET, FaultyProxy, Rule, cut, slow, status
from tests.fixtures.cloud.loopback import Message
from tests.fixtures.cloud.shards import (
    BUCKET,
    Flipping,
    fetched,
    proxied,
    put_shards,
    staged_files,
)
from tripletmill.errors import UsageError
from tripletmill.storage import bucket, staging, storage
from tripletmill.storage.files import FileInfo
from tripletmill.storage.staging import stage_shards

SECONDS = 120  # longer than anything here takes, and shorter than a slow answer
IF_NO_ROOM = "use another disk"


@pytest.fixture(scope="module")
def emulator():
    with go_emulator() as found:
        found.make_bucket(BUCKET)
        yield found


def put(emulator, folder, *, sizes=(50_000,) * 8):
    """Puts random shards into the bucket; returns what is staged, and the bytes by file name."""
    shards = put_shards(emulator, folder, sizes=sizes)
    files = [
        FileInfo(f"gs://{BUCKET}/{folder}/{name}", len(data), 0, crc32c=google_crc32c.value(data))
        for name, data in shards.items()
    ]
    return files, shards


def stage(files, folder):
    return stage_shards(
        files,
        os.path.join(folder, "toy"),
        name="train",
        if_no_room=IF_NO_ROOM,
        if_damaged="write it again",
    )


def begin(endpoint, files, folder, log, dies=""):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tripletmill.storage.staging", "google.cloud.storage"])
    arguments = (endpoint.environment(), files, str(folder), str(log), dies)
    process = context.Process(target=_main, args=arguments)
    process.start()
    return process


def _main(environment, files, folder, log, dies):
    """Stages in a process; `dies` names the moment at which the process is killed."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stderr = open(log, "w")  # noqa: SIM115

    def killed(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    atomic_file, extend, replace = storage.atomic_file, google_crc32c.extend, os.replace
    written: list[int] = []

    def dies_after_some_bytes(crc32c: int, data: bytes) -> int:
        written.append(len(data))
        return extend(crc32c, data) if sum(written) < 20_000 else killed()

    if dies == "opening":
        storage.atomic_file = lambda path: killed() or atomic_file(path)
    if dies == "writing":
        google_crc32c.extend = dies_after_some_bytes
    if dies == "syncing":
        os.fsync = killed
    if dies == "renaming":
        os.replace = killed
    if dies == "renamed":
        os.replace = lambda *names: killed(replace(*names))
    try:
        stage(files, folder)
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, UsageError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished(folder):
    return {str(path) for path in Path(folder).glob("*/toy-*") if path.suffix != ".partial"}


def test_default_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert staging.default_folder() == "/home/somebody/.cache/tripletmill"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert staging.default_folder() == "/scratch/tripletmill"


def test_empty_shards_and_wrong_sizes(emulator, monkeypatch, tmp_path):
    files, shards = put(emulator, "empty", sizes=(0, 30_000, 0, 20_000))
    with proxied(emulator, monkeypatch) as proxy:
        staged = stage(files, tmp_path)
        assert staged_files(tmp_path) == shards
        assert fetched(proxy).total() == 2
        Path(staged[1]).write_bytes(b"cut off")
        os.remove(staged[0])
        stage(files, tmp_path)
        assert fetched(proxy).total() == 3
    assert staged_files(tmp_path) == shards


def test_faults_in_between(emulator, monkeypatch, tmp_path, capsys):
    files, shards = put(emulator, "faults", sizes=(100_000,) * 12)
    rules = [
        Rule(status(503), path=DOWNLOAD, every=3, first=6),
        Rule(RESET, path=DOWNLOAD, every=4, first=8),
        Rule(cut(), path=DOWNLOAD, every=3, first=9),
        Rule(slow(0.3), path=DOWNLOAD, every=4, first=8),
    ]
    monkeypatch.setattr(staging.Progress, "update", lambda self, text: self.line(text))
    with proxied(emulator, monkeypatch, rules) as proxy:
        stage(files, tmp_path)
    for kind in ("503", "reset", "cut", "slow"):
        assert proxy.counts[kind] > 0, kind
    assert staged_files(tmp_path) == shards
    *updates, last = capsys.readouterr().err.splitlines()
    assert updates
    for line in updates:
        assert re.fullmatch(
            r"staging train: \S+ \w+ of 1\.2 MB, \d+ of 12 shards(, .*/s, .* left)?", line
        )
    assert last.endswith("0 already there")


def test_a_line_that_breaks_all_the_time(emulator, monkeypatch, tmp_path):
    """The connection breaks more often than retries allow; no byte is asked for twice."""
    files, shards = put(emulator, "breaks", sizes=(120_000,))
    monkeypatch.setattr(bucket, "RETRY_SECONDS", 0.5)
    with proxied(emulator, monkeypatch, [Rule(cut(10_000), path=DOWNLOAD)]) as proxy:
        stage(files, tmp_path)
    assert proxy.counts["cut"] >= 8
    assert staged_files(tmp_path) == shards


@pytest.mark.parametrize("broken_off", [False, True])
def test_bytes_that_change_on_their_way(emulator, monkeypatch, tmp_path, broken_off):
    """Also after a break, when the library does not check the checksum of the download."""
    files, shards = put(emulator, "flipped")
    rules = [Rule(cut(40_000), name="00003-of", path=DOWNLOAD, first=1)] if broken_off else []
    with (
        proxied(emulator, monkeypatch, rules, Flipping) as proxy,
        pytest.raises(OSError, match=r"arrived damaged.*write it again") as raised,
    ):
        stage(files, tmp_path)
    assert proxy.counts["cut"] == broken_off
    assert raised.value.filename == files[3].path
    assert "the same command goes on from there" in str(raised.value)
    found = staged_files(tmp_path)
    assert "toy-train.tfrecord-00003-of-00008" not in found
    assert found.items() <= shards.items()
    with proxied(emulator, monkeypatch) as proxy:
        stage(files, tmp_path)
        assert fetched(proxy) == dict.fromkeys(shards.keys() - found.keys(), 1)
    assert staged_files(tmp_path) == shards


def test_nothing_is_taken_once_nobody_waits(emulator, monkeypatch, tmp_path):
    """When a download has failed, one that is just opening its file leaves nothing behind."""
    files, _ = put(emulator, "late", sizes=(50_000, 50_000))
    atomic_file, opening = storage.atomic_file, threading.Event()
    download, ended = bucket.download, threading.Event()

    def slow(path):
        opening.set()
        assert ended.wait(SECONDS)
        time.sleep(0.2)
        return atomic_file(path)

    def download_then_tell(*arguments, **kw):
        try:
            download(*arguments, **kw)
        finally:
            ended.set()

    # A rule must not wait, since the proxy asks its rules about one request at a time.
    class FirstFails(FaultyProxy):
        def forward(self, request, message):
            if "alt=media" in request.path and "00000-of" in request.name:
                assert opening.wait(SECONDS)
                return Message([], b"", 404)
            return super().forward(request, message)

    monkeypatch.setattr(storage, "atomic_file", slow)
    monkeypatch.setattr(bucket, "download", download_then_tell)
    with (
        proxied(emulator, monkeypatch, (), FirstFails),
        pytest.raises(FileNotFoundError, match="No such object"),
    ):
        stage(files, tmp_path)
    assert opening.is_set()
    assert staged_files(tmp_path) == {}


@pytest.mark.parametrize(
    ("code", "kept", "message"),
    [(503, 3, "Timeout of 1.0s"), (403, 0, "403"), (404, 0, "No such object")],
)
def test_network_that_stays_down(emulator, monkeypatch, tmp_path, code, kept, message):
    files, shards = put(emulator, "down", sizes=(20_000,) * 40)
    rules = [Rule(status(code), path=DOWNLOAD, skip=3)]
    monkeypatch.setattr(bucket, "RETRY_SECONDS", 1.0)
    with (
        proxied(emulator, monkeypatch, rules) as proxy,
        pytest.raises(OSError, match=message) as raised,
    ):
        stage(files, tmp_path)
    assert "the same command goes on from there" in str(raised.value)
    assert str(raised.value).startswith("[Errno ")
    assert raised.value.filename in [file.path for file in files]
    assert len(fetched(proxy)) < 40  # downloads that had not begun were not started
    assert kept <= len(finished(tmp_path)) <= 3
    assert staged_files(tmp_path).items() <= shards.items()


@pytest.mark.parametrize("moment", ["opening", "writing", "syncing", "renaming", "renamed"])
def test_killed(emulator, tmp_path, moment):
    files, shards = put(emulator, "killed")
    log = tmp_path / "log"
    folder = tmp_path / "cache"
    process = begin(emulator, files, folder, log, moment)
    process.join(SECONDS)
    assert process.exitcode == -signal.SIGKILL
    left = staged_files(folder)
    whole = {name: data for name, data in left.items() if not name.endswith(".partial")}
    assert whole.items() <= shards.items()
    assert bool(whole) == (moment == "renamed")
    assert moment in ("opening", "renamed") or len(left) > len(whole)
    with FaultyProxy(emulator.url) as proxy:
        process = begin(proxy, files, folder, log)
        process.join(SECONDS)
        assert fetched(proxy) == dict.fromkeys(shards.keys() - whole.keys(), 1)
    assert process.exitcode == 0, log.read_text()
    assert log.read_text().endswith(f"{len(whole)} already there\n")
    assert staged_files(folder) == shards


def test_killed_again_and_again(emulator, tmp_path):
    files, shards = put(emulator, "again", sizes=(30_000,) * 60)
    moments = random.Random(1)
    with FaultyProxy(emulator.url, [Rule(slow(1.0), path=DOWNLOAD)]) as late:
        for _ in range(3):
            before = {path: os.stat(path).st_mtime_ns for path in finished(tmp_path / "cache")}
            process = begin(late, files, tmp_path / "cache", tmp_path / "log")
            until(lambda b=before: finished(tmp_path / "cache") > b.keys())
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
            process.join()
            assert {path: os.stat(path).st_mtime_ns for path in before} == before
    left = {Path(path).name for path in finished(tmp_path / "cache")}
    with FaultyProxy(emulator.url) as proxy:
        process = begin(proxy, files, tmp_path / "cache", tmp_path / "log")
        process.join(SECONDS)
        assert fetched(proxy) == dict.fromkeys(shards.keys() - left, 1)
    assert 3 <= len(left) < 60
    assert staged_files(tmp_path / "cache") == shards


def test_interrupted(emulator, tmp_path):
    """Ctrl+C ends the process although downloads are running or waiting; finished shards stay."""
    files, shards = put(emulator, "interrupted", sizes=(30_000,) * 40)
    with FaultyProxy(emulator.url, [Rule(slow(4 * SECONDS), path=DOWNLOAD, skip=3)]) as late:
        process = begin(late, files, tmp_path / "cache", tmp_path / "log")
        until(lambda: len(finished(tmp_path / "cache")) == 3 and late.counts["slow"] >= 5)
        os.kill(process.pid, signal.SIGINT)
        process.join(SECONDS)
        assert process.exitcode == 130
        asked = len(fetched(late))
    assert asked < 40
    left = staged_files(tmp_path / "cache")
    assert len(left) == 3
    assert left.items() <= shards.items()


def test_several_at_once(emulator, tmp_path):
    files, shards = put(emulator, "together")
    answers = threading.Event()

    class Holding(FaultyProxy):
        def forward(self, request, message):
            if "alt=media" in request.path:
                answers.wait(SECONDS)
            return super().forward(request, message)

    def are_waiting() -> bool:
        texts = [log.read_text() for log in tmp_path.glob("log*")]
        return sum("waiting for it" in text for text in texts) == 2

    with Holding(emulator.url) as late:
        processes = [begin(late, files, tmp_path / "cache", tmp_path / f"log{i}") for i in range(3)]
        until(are_waiting)
        answers.set()
        for process in processes:
            process.join(SECONDS)
        assert fetched(late) == dict.fromkeys(shards, 1)
    logs = [(tmp_path / f"log{i}").read_text() for i in range(3)]
    assert [process.exitcode for process in processes] == [0, 0, 0], logs
    assert sorted(log.count("waiting for it") for log in logs) == [0, 1, 1]
    assert sorted(log.count("8 already there") for log in logs) == [0, 1, 1]
    assert staged_files(tmp_path / "cache") == shards


def test_the_next_takes_over(emulator, tmp_path):
    files, shards = put(emulator, "taken_over")
    first_log, log = tmp_path / "first", tmp_path / "log"
    with FaultyProxy(emulator.url, [Rule(HANG, path=DOWNLOAD, skip=3)]) as stuck:
        first = begin(stuck, files, tmp_path / "cache", first_log)
        until(lambda: len(finished(tmp_path / "cache")) == 3)
        with FaultyProxy(emulator.url) as proxy:
            second = begin(proxy, files, tmp_path / "cache", log)
            until(lambda: log.exists() and "waiting for it" in log.read_text())
            assert not fetched(proxy)
            first.kill()
            first.join()
            second.join(SECONDS)
            assert fetched(proxy).total() == 5
    assert second.exitcode == 0, log.read_text()
    assert staged_files(tmp_path / "cache") == shards


def test_too_small_a_disk(emulator, monkeypatch, tmp_path):
    files, shards = put(emulator, "room")
    free = 399_999
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - free, free))
    with proxied(emulator, monkeypatch) as proxy:
        message = rf"400\.0 kB needed, 400\.0 kB free; {IF_NO_ROOM}"
        with pytest.raises(UsageError, match=message):
            stage(files, tmp_path)
        assert not fetched(proxy)
        [target] = tmp_path.iterdir()
        name = next(iter(shards))
        (target / name).write_bytes(shards[name])  # this shard needs no more space
        stage(files, tmp_path)
    assert staged_files(tmp_path) == shards


@pytest.mark.parametrize("free", [0, 10**9])
def test_a_disk_that_becomes_full(emulator, monkeypatch, tmp_path, free):
    files, _ = put(emulator, "full")
    asked = []

    def usage(_):
        asked.append(1)
        return shutil._ntuple_diskusage(10**9, 0, 10**9 if len(asked) == 1 else free)

    def full(path, *arguments, **kw):
        return builtins.open("/dev/full" if ".partial" in str(path) else path, *arguments, **kw)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr("tripletmill.storage.local.open", full, raising=False)
    message = "No space left on device" if free else r"400\.0 kB needed, 0 bytes free"
    with client_of(emulator, monkeypatch), pytest.raises(UsageError, match=message) as raised:
        stage(files, tmp_path)
    assert str(raised.value).endswith(IF_NO_ROOM)
    assert not staged_files(tmp_path)


def test_odd_folders(emulator, monkeypatch, tmp_path):
    files, shards = put(emulator, "odd")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "closed").mkdir(mode=0o555)
    with client_of(emulator, monkeypatch):
        with pytest.raises(UsageError, match=r"cannot be written \(Not a directory\)"):
            stage(files, tmp_path / "file" / "in")
        if os.geteuid():
            with pytest.raises(UsageError, match=r"cannot be written \(Permission denied\)"):
                stage(files, tmp_path / "closed")
        odd = tmp_path / "ä [b] *" / "%20 #?"
        staged = stage(files, odd)
        assert staged_files(odd) == shards
        # A complete copy needs no lock, so nobody needs the right to write there.
        os.remove(Path(staged[0]).parent / ".lock")
        assert stage(files, odd) == staged
        assert not (Path(staged[0]).parent / ".lock").exists()
        # There is a folder in the place of a shard.
        os.remove(staged[2])
        os.mkdir(staged[2])
        with pytest.raises(UsageError, match=r"00002-of-00008: cannot be written"):
            stage(files, odd)


def test_without_checksums(emulator, monkeypatch, tmp_path):
    """Shards without a CRC-32C are taken as they arrive."""
    files, shards = put(emulator, "unchecked")
    files = [FileInfo(file.path, file.size, 0) for file in files]
    with proxied(emulator, monkeypatch, (), Flipping):
        stage(files, tmp_path)
    found = staged_files(tmp_path)
    assert {name for name, data in shards.items() if found[name] != data} == {
        "toy-train.tfrecord-00003-of-00008"
    }
    assert stage([], tmp_path) == []
