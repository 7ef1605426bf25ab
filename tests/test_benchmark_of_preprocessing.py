"""Tests that the preprocessing benchmark runs, says what failed, and leaves no files behind."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.preprocess.commands import run, started
from benchmarks.preprocess.photos import KINDS, photos
from benchmarks.processes import CommandError

ROOT = Path(__file__).parents[1]


def preprocess(folder: Path, *flags: str) -> str:
    """Returns what `python -m benchmarks.preprocess` prints, which leaves the folder empty."""
    command = [sys.executable, "-m", "benchmarks.preprocess", "--rounds=1", f"--folder={folder}"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    assert not os.listdir(folder)
    return done.stdout


def test_photos_differ_and_links_repeat(tmp_path):
    for links, distinct in ((False, 310), (True, KINDS["small"].distinct)):
        with photos(tmp_path, KINDS["small"], 310, links=links) as folder:
            files = [*folder.rglob("*.jpg")]
            assert len(files) == 310
            assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == distinct
            with Image.open(files[-1]) as image:
                assert image.size == (170, 128)
        assert not os.listdir(tmp_path)


def test_a_command_that_fails_says_why():
    with pytest.raises(CommandError, match="the following arguments are required: folder"):
        run("benchmarks.preprocess.pool")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux only")
def test_a_command_and_its_processes_end_with_the_block(tmp_path):
    with photos(tmp_path, KINDS["small"], 400) as folder, tempfile.TemporaryFile("w+") as log:
        flags = (str(folder), "--short_side=128", "--processes")
        with started(log, "benchmarks.preprocess.pool", *flags) as process:
            session = process.pid
            time.sleep(0.3)
        with pytest.raises(ProcessLookupError):
            os.killpg(session, 0)


def test_preprocess_many(tmp_path):
    printed = preprocess(tmp_path, "--parts=many", "--many=20")
    assert "20 images, no two alike: 170 x 128 to short side 128" in printed


@pytest.mark.parametrize("flag", ["--parts=sped", "--images=0", "--folder=/nowhere"])
def test_preprocess_refuses_wrong_flags_in_one_line(flag):
    command = [sys.executable, "-m", "benchmarks.preprocess", flag]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_preprocess_small_images_in_all_parts(tmp_path):
    flags = ("--kinds=small", "--images=200", "--memory", "20", "40", "--many=20")
    printed = preprocess(tmp_path, *flags)
    for row in ("bare thread pool", "pipeline.main, multi_processing", "TFDS", "all finished"):
        assert row in printed
