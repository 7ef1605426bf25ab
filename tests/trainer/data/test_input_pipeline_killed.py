"""A process that is killed at any moment and started again reads the same pixels."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.input_digests import STEPS

ROOT = Path(__file__).parents[3]


def start(data_dir, out) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.fixtures.input_digests", str(data_dir), str(out)]
    return subprocess.Popen(command, cwd=ROOT)


def lines(out: Path) -> int:
    return out.read_text().count("\n") if out.exists() else 0


@pytest.mark.slow
def test_killed_at_random_steps(data_dir, tmp_path):
    """One process never stops; the other is killed twice at random steps."""
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    whole = start(data_dir, unbroken)
    for end in sorted(random.sample(range(1, STEPS), 2)):
        process = start(data_dir, killed)
        deadline = time.monotonic() + 120
        while lines(killed) < end and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert lines(killed) >= end
    assert start(data_dir, killed).wait(120) == 0
    assert whole.wait(120) == 0
    digests = unbroken.read_text().splitlines()
    assert killed.read_text().splitlines() == digests
    assert len(set(digests)) == STEPS
