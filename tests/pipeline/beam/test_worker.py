"""Worker processes of local runs that are interrupted or killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.jobs import ROOT, SETTINGS
from tests.fixtures.stderr import but_for_progress


@pytest.fixture(scope="module")
def much_to_do(tmp_path_factory) -> list[str]:
    """Flags of a job that takes seconds, on two worker processes."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (1500, 2000, 3), np.uint8))
    for name in ("a", "b", "c"):
        (root / "images" / name).mkdir(parents=True)
        large.save(root / "images" / name / "0.jpg")
        for i in range(1, 40):
            os.link(root / f"images/{name}/0.jpg", root / f"images/{name}/{i}.jpg")
    modes = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    threads = ["--gin_param=preprocess.threads = 1"]
    return [f"--input={root / 'images'}", *SETTINGS, *threads, *modes]


@contextlib.contextmanager
def at_work(flags: list[str], output: Path) -> Iterator[subprocess.Popen]:
    """Starts a job in a process group of its own; its workers have finished a shard."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.main", *flags, f"--output={output}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not list(output.glob(".work/*/*.sidecar.parquet")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("whom", ["terminal", "job"])
def test_interrupted_workers_say_nothing(much_to_do, tmp_path, whom):
    with at_work(much_to_do, tmp_path / "data") as process:
        (os.killpg if whom == "terminal" else os.kill)(process.pid, signal.SIGINT)
        # Standard error ends when the last worker ends.
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    line = "interrupted; the same command goes on from the finished shards"
    assert but_for_progress(stderr) == [line]


def test_a_worker_that_dies(much_to_do, tmp_path):
    with at_work(much_to_do, tmp_path / "data") as process:
        table = subprocess.run(["ps", "-Ao", "pid=,ppid="], capture_output=True, text=True).stdout
        rows = [[int(number) for number in line.split()] for line in table.splitlines()]
        workers = [child for child, parent in rows if parent == process.pid]
        os.kill(workers[-1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=120)
    assert len(workers) == 2
    assert process.returncode == 2
    [line] = but_for_progress(stderr)
    assert line.startswith("error: the job failed: Channel closed prematurely.")
    assert line.endswith("; the same command goes on from the finished shards")
