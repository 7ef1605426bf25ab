"""Tests of what the benchmarks share, and that each benchmark runs and prints its rows."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from benchmarks.memory import peak_bytes
from benchmarks.mining.comparison import rotate
from benchmarks.mining.worker import random_batch, turn
from benchmarks.preprocess.commands import run, started
from benchmarks.preprocess.photos import KINDS, photos
from benchmarks.processes import CommandError
from benchmarks.tables import print_columns
from benchmarks.timing import turns
from benchmarks.train import forward_flops
from tests.fixtures.datasets import small_data_set
from tripletmill.formats.index import load_index
from tripletmill.formats.records import decode_example, read_record

ROOT = Path(__file__).parents[1]


def test_turns_run_in_rotation_and_leave_out_the_first_round():
    order = []
    contestants = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert turns(contestants, rounds=2) == {"a": [3, 5], "b": [4, 6]}
    assert order == [*"ababab"]


def test_turns_stop_after_three_rounds_once_the_seconds_are_over():
    assert turns({"a": lambda: 1}, rounds=9, seconds=0) == {"a": [1, 1, 1]}


def test_a_contestant_that_fails_has_no_result_and_the_others_go_on():
    def fails():
        raise CommandError("no memory")

    results = rotate({"fails": fails, "runs": lambda: ([3.0, 1.0, 2.0], 0.5)}, rounds=1, seconds=9)
    assert results["fails"] is None
    runs = results["runs"]
    assert (runs.median, runs.fastest, runs.loss) == (2.0, 1.0, 0.5)


def test_a_turn_leaves_out_its_first_call():
    calls = []
    seconds, loss = turn(lambda: calls.append(time.sleep(0.01)) or 1.5)
    assert len(seconds) == len(calls) - 1
    assert loss == 1.5


def test_random_batch_is_equal_in_every_call():
    labels, embeddings = random_batch(64)
    assert (np.bincount(labels) == 4).all()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(embeddings, random_batch(64)[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux only")
def test_peak_bytes_sees_memory_that_was_freed_before_the_end():
    def use() -> None:
        block = np.ones(2**23)
        time.sleep(0.3)
        del block

    assert 60e6 < peak_bytes(use) < 100e6


def test_print_columns_formats_numbers_text_and_none(capsys):
    print_columns(
        "Title", ["B = 1", "B = 2"], [("row", [1234.5, None]), ("other", [0.1, "absent"])]
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines[1:] == [["row", "1,234", "-"], ["other", "0.10", "absent"]]


def benchmark(name: str, *flags: str) -> str:
    """Returns what `python -m benchmarks.NAME` prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        *(("input", flag) for flag in ("--parts=sped", "--classes=5", "--read=1", "--images=/no")),
        *(("preprocess", flag) for flag in ("--parts=sped", "--images=0", "--folder=/nowhere")),
    ],
)
def test_wrong_flags_are_refused_in_one_line(name, flag):
    command = [sys.executable, "-m", f"benchmarks.{name}", flag]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def mining(*flags: str) -> str:
    return benchmark("mining", "--rounds", "1", *flags)


@pytest.mark.slow
def test_mining_without_peers(tmp_path):
    printed = mining("--sizes", "64", "--shares", "--memory", "--peers", str(tmp_path))
    assert printed.count("not installed: make peers") == 2
    for row in ("B x B matmul, forward only", "semi-hard", "TensorFlow Addons", "absent"):
        assert row in printed


@pytest.mark.slow
def test_mining_of_shares_and_memory(tmp_path):
    printed = mining("--sizes", "--shares", "64", "--memory", "64", "--peers", str(tmp_path))
    for row in ("hard, B = 64, ms", "R x time / time of R = 1", "semi-hard, B = 64 "):
        assert row in printed


def batches_by_offset(folder: Path, *flags: str) -> str:
    """Returns what `python -m benchmarks.input` prints for small data sets."""
    data = ["--images_per_class=4", "--records=160", "--class_files=32"]
    turns = ["--read=384", "--rounds=1"]
    plans = ["--plan_classes", "64", "--plan_images=8", "--plan_seconds=.01"]
    where = [f"--folder={folder}", "--sides", "32"]
    return benchmark("input", *where, *data, *turns, *plans, *flags)


def test_input_speed_and_plans(tmp_path):
    printed = batches_by_offset(tmp_path, "--classes=40", "--parts", "speed", "plan")
    assert "32 px, 40 classes x 4: batches of 32 x 4" in printed
    for row in ("train_batches, MemoryRecords", "bare sequential read", "64 classes, 32 x 128"):
        assert row in printed
    index = load_index(str(tmp_path / "32px-40x4"), "train")
    assert len(index) == 160
    assert np.bincount(index.label).tolist() == [4] * 40
    with open(index.shards[1], "rb") as shard:
        row = int(np.argmax(index.shard == 1))
        example = decode_example(read_record(shard, int(index.offset[row])))
    assert example["image/class/label"] == index.label[row]
    assert (index.height[row], index.width[row]) == (32, 43)


@pytest.mark.slow
def test_input_all_parts(tmp_path):
    printed = batches_by_offset(tmp_path, "--classes", "32", "64", f"--peers={tmp_path}")
    for row in ("a chunk as in training", "choose_from_datasets, 32 class files", "make peers"):
        assert row in printed


def retrieval(data: Path, *flags: str) -> str:
    batch = ["--classes=4", "--images=2", "--seeds=1"]
    return benchmark("retrieval", f"--data_dir={data}", "--steps=2", *batch, *flags)


@pytest.mark.slow
def test_retrieval_with_our_losses_only(tmp_path):
    printed = retrieval(small_data_set(tmp_path), "--parts=peers", f"--peers={tmp_path}")
    rows = [line.split() for line in printed.splitlines()]
    assert sum("absent" in row for row in rows) == 7
    scores = [float(row[-6]) for row in rows if row and row[0] in ("semi-hard,", "hard")]
    assert len(scores) == 3
    assert all(0 < score <= 1 for score in scores)


@pytest.mark.slow
def test_retrieval_within_and_over_replicas(tmp_path):
    printed = retrieval(small_data_set(tmp_path), "--parts=replicas", "--losses", "hard")
    for row in ("hard, mined over all 4 replicas", "hard, mined within each replica"):
        assert row in printed


def test_search():
    printed = benchmark("search", "--rows=2000", "--dim=16", "--kinds", "flat", "hnsw")
    lines = filter(None, printed.splitlines())
    rows = {line.rsplit(maxsplit=4)[0].strip(): line.split() for line in lines}
    assert rows["exact"][1:3] == ["1.000", "1.000"]
    assert 0.5 < float(rows["efSearch = 16"][3]) <= float(rows["efSearch = 512"][3]) <= 1


def test_evaluation(tmp_path):
    printed = benchmark("evaluation", "--sizes=200", "--dim=8", f"--peers={tmp_path}")
    assert printed.count("200 x 200") == 4
    assert printed.count("absent") == 2


def test_forward_flops_of_a_convolution_match_a_count_by_hand():
    """A 3 x 3 convolution from 4 x 4 x 3 to 4 x 4 x 5: one multiplication and one addition each."""
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, keras.layers.Conv2D(5, 3, padding="same", use_bias=False)(image))
    assert forward_flops(model) == 2 * 4 * 4 * 5 * 3 * 3 * 3


def preprocess(folder: Path, *flags: str) -> str:
    """Returns what `python -m benchmarks.preprocess` prints, which leaves the folder empty."""
    printed = benchmark("preprocess", "--rounds=1", f"--folder={folder}", *flags)
    assert not os.listdir(folder)
    return printed


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


@pytest.mark.slow
def test_preprocess_small_images_in_all_parts(tmp_path):
    flags = ("--kinds=small", "--images=200", "--memory", "20", "40", "--many=20")
    printed = preprocess(tmp_path, *flags)
    for row in ("bare thread pool", "pipeline.main, multi_processing", "TFDS", "all finished"):
        assert row in printed
